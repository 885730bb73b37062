"""Analyses the runs of a plan: the value of each arm at each budget, and how much data its start saves."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from vitwarm.budget.cells import DONE, Status
from vitwarm.budget.equivalence import UNKNOWN, Equivalence, FirstCrossing, equivalence, first_crossing
from vitwarm.budget.grid import WARMUP, Grid
from vitwarm.budget.plan import METRICS, UNITS, Plan, Published, PublishedValue
from vitwarm.budget.runs import Run
from vitwarm.budget.statistics import (
    Array,
    agree,
    bootstrap_interval,
    holm,
    minimum_detectable_effect,
    paired_interval,
    paired_p_value,
    seeds_needed,
)
from vitwarm.checks import differences
from vitwarm.errors import UserError
from vitwarm.reading import read_json
from vitwarm.recipe import NOT_IDENTITY

_FEW = 3  # seeds below which nothing is claimed
_LARGE = 0.05  # share of the main stage above which a warm-up is not a small addition
_LISTED = 6  # places that a warning names; the rest is counted
_OWN_KEYS = (*NOT_IDENTITY, "seed")  # differ between any two cells


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its 95 % t interval; all None without a run, the interval with one."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class CellRow:
    """One run, or why there is none.

    Attributes:
        value: final metric in the unit of the metric; None unless the state is `done`.
        samples, tokens, flops, device_seconds: sums over all stages, as the run counted them.
        arguments: the command line that gives its recipe.
    """

    arm: str
    budget: float
    main: float
    seed: int
    hash: str
    state: str
    note: str
    folder: str
    arguments: tuple[str, ...]
    trunk: str | None
    value: float | None = None
    samples: int | None = None
    tokens: int | None = None
    flops: float | None = None
    device_seconds: float | None = None
    device: str | None = None


@dataclass(frozen=True)
class Point:
    """An arm at a budget; the difference is to the baseline at the same budget, paired by seed.

    Attributes:
        seeds: seeds that have a result here.
        pairs: seeds that have one here and in the baseline.
    """

    arm: str
    budget: float
    seeds: tuple[int, ...]
    mean: Mean
    pairs: int
    difference: Mean


@dataclass(frozen=True)
class ArmRow:
    """An arm at the full budget, against the baseline, and what its start is worth.

    Attributes:
        name, label: its key in the plan; what sentences, tables and figures call it.
        changes: (key, the baseline's value, this arm's value) of their recipes.
        warmup: size of the warm-up, as a share of the full main stage in the plan's unit; None where no rate is known.
        mean, sd: over the seeds that have a result; sd is the sample standard deviation.
        difference: paired, at the full budget.
        bootstrap: (low, high) of that difference, for comparison.
        sd_difference: sample standard deviation of the paired differences.
        p, p_holm: p value of the paired t test; adjusted for all arms of the study.
        detectable: smallest true difference that these seeds find with 80 % power.
        flops, device_seconds: mean of a run at the full budget, all stages.
        equivalence: the data needed, from separately scheduled or branched runs, on the scale of the budgets.
        crossing: the same, read off the full-length runs.
    """

    name: str
    label: str
    recipe: str
    settings: dict[str, Any]
    start: str | None
    changes: list[tuple[str, Any, Any]]
    warmup: float | None
    pairs: int
    mean: Mean
    sd: float | None
    difference: Mean
    bootstrap: tuple[float | None, float | None]
    sd_difference: float | None
    p: float | None
    p_holm: float | None
    detectable: float | None
    flops: float | None
    device_seconds: float | None
    equivalence: Equivalence
    crossing: FirstCrossing


@dataclass(frozen=True)
class Study:
    """The results of a study, in plain values, as the report shows them.

    Attributes:
        data: what a budget counts, in a word: images, samples, tokens, ...
        unit: unit of differences of the metric.
        arms: the baseline first.
        points: by arm, then budget.
        curves: arm -> seed -> (share of the budget, value) along the full-length run.
        versions, devices: versions and devices of the runs; several values where they differ.
        command: command line that made the study.
    """

    name: str
    description: str
    stage: str
    setting: str
    counted: str
    data: str
    points_are: str
    metric: str
    label: str
    unit: str
    higher: bool
    baseline: str
    budgets: tuple[float, ...]
    seeds: tuple[int, ...]
    effect: float | None
    arms: list[ArmRow]
    points: list[Point]
    cells: list[CellRow]
    curves: dict[str, dict[int, list[tuple[float, float]]]]
    published: tuple[Published | PublishedValue, ...]
    versions: dict[str, list[str]]
    devices: list[str]
    command: str
    warnings: list[str]

    @property
    def form(self) -> str:
        """Format of a value."""
        return METRICS[self.metric].form

    @property
    def signed(self) -> str:
        """Format of a difference."""
        return f"+{self.form}"

    @property
    def published_shares(self) -> list[Published]:
        """Published amounts of data needed."""
        return [point for point in self.published if isinstance(point, Published)]

    @property
    def published_values(self) -> list[PublishedValue]:
        """Published final values at the full budget, in the metric of this study."""
        values = [point for point in self.published if isinstance(point, PublishedValue)]
        return [point for point in values if point.metric == self.metric]

    @property
    def base(self) -> str:
        """What the baseline is called."""
        return self.arms[0].label

    @property
    def labels(self) -> dict[str, str]:
        """What each arm is called, by its name."""
        return {arm.name: arm.label for arm in self.arms}

    @property
    def others(self) -> list[ArmRow]:
        """The arms to compare with the baseline."""
        return [arm for arm in self.arms if arm.name != self.baseline]


def read_study(path: Path) -> Study:
    """Read the study.json of a report.

    Raises:
        UserError: it is none.
    """
    try:
        return _rebuilt(Study, read_json(path))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not the study.json of a report by this version ({error!r})") from error


def _rebuilt(kind: Any, value: Any) -> Any:
    """A value of an annotated type from what JSON has made of it."""
    origin, parts = get_origin(kind), get_args(kind)
    if value is None:
        return None
    if origin in (Union, UnionType):
        fitting = [part for part in parts if not is_dataclass(part) or part.__dataclass_fields__.keys() == value.keys()]
        return _rebuilt(fitting[0], value)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: _rebuilt(hints[name], part) for name, part in value.items()})
    if origin is dict:
        return {parts[0](key): _rebuilt(parts[1], part) for key, part in value.items()}
    if origin is list:
        return [_rebuilt(parts[0], part) for part in value]
    if origin is tuple:
        kinds = parts if Ellipsis not in parts else parts[:1] * len(value)
        return tuple(_rebuilt(one, part) for one, part in zip(kinds, value, strict=True))
    return value


def analyse(grid: Grid, statuses: Mapping[str, Status], command: str = "") -> Study:
    """Analyse the finished cells of a grid; cells without a usable result are marked and left out.

    Args:
        grid: the plan's cells.
        statuses: hash -> state.
        command: the command line of the study, for the record.

    Raises:
        UserError: scipy is missing.
    """
    plan, metric = grid.plan, METRICS[grid.plan.metric]
    runs = {
        (cell.arm, cell.budget, cell.seed): statuses[cell.hash].run
        for cell in grid.cells
        if statuses[cell.hash].state == DONE
    }
    values = {place: metric.scale * run.result["metrics"][plan.metric] for place, run in runs.items()}
    table = {
        arm: np.array([[values.get((arm, b, s), np.nan) for s in plan.seeds] for b in plan.budgets])
        for arm in plan.arms
    }
    warmups = {arm: _warmup_share(grid, arm, runs) for arm in plan.arms}
    unread: list[str] = []
    curves = {arm: _curves(grid, arm, runs, warmups[arm] or 0.0, unread) for arm in plan.arms}
    arms = [_arm(grid, arm, runs, table, warmups[arm], curves[arm]) for arm in plan.arms]
    cells = _cells(grid, statuses, values)
    points = [_point(plan, arm, k, table) for arm in plan.arms for k in range(len(plan.budgets))]
    results = [run.result for run in runs.values()]
    versions: dict[str, list[str]] = {}
    for name, version in sorted({item for r in results for item in r["versions"].items()}):
        versions.setdefault(name, []).append(version)
    return Study(
        name=plan.name,
        description=plan.description,
        stage=grid.stage,
        setting=plan.setting,
        counted=UNITS[plan.unit],
        data=_data(grid),
        points_are=plan.points,
        metric=plan.metric,
        label=metric.label,
        unit=metric.unit,
        higher=metric.higher,
        baseline=plan.baseline,
        budgets=plan.budgets,
        seeds=plan.seeds,
        effect=plan.effect,
        arms=_adjusted(arms, plan.baseline),
        points=points,
        cells=cells,
        curves=curves,
        published=plan.published,
        versions=versions,
        devices=sorted({r["device"] for r in results}),
        command=command,
        warnings=unread + _warnings(grid, arms, points, cells, versions, sorted({r["device"] for r in results})),
    )


def plan_warnings(plan: Plan, sd: float | None = None) -> list[str]:
    """Warnings about what a plan cannot detect with its seeds, before or after it ran.

    Args:
        plan: the plan.
        sd: standard deviation of paired differences, in the metric's unit; None takes the plan's own.
    """
    found, n, unit = [], len(plan.seeds), METRICS[plan.metric].unit
    if n < _FEW:
        found.append(f"{n} seed{'s' if n > 1 else ''}: too few to decide anything; plan at least {_FEW}.")
    sd = sd or plan.sd
    if plan.effect and not sd:
        found.append(
            f"Whether {n} seeds decide about {plan.effect:g} {unit} shows once runs are done; the sd of paired "
            "differences from earlier runs, as the plan's sd, shows it before."
        )
    if plan.effect and sd and n > 1:
        smallest = minimum_detectable_effect(sd, n)
        if smallest > plan.effect:
            found.append(
                f"This plan cannot detect its effect: with {n} seeds, and paired differences that scatter by "
                f"{sd:.2g} {unit} (sd), a difference must be {smallest:.2g} {unit} to be found four times in five, and "
                f"the plan's effect is {plan.effect:g}. That takes about {seeds_needed(plan.effect, sd)} seeds."
            )
    return found


def _data(grid: Grid) -> str:
    if grid.plan.unit == "samples":
        return "images" if grid.stage == "images" else "samples"
    return "device time" if grid.plan.unit == "device_seconds" else UNITS[grid.plan.unit]


def _runs_of(grid: Grid, arm: str, runs: dict[tuple, Run]) -> dict[int, Run]:
    """Seed -> finished run at the full budget."""
    return {s: runs[arm, 1.0, s] for s in grid.plan.seeds if (arm, 1.0, s) in runs}


def _warmup_share(grid: Grid, arm: str, runs: dict[tuple, Run]) -> float | None:
    """The warm-up's share as planned, or as measured by the runs where no rate was known."""
    try:
        return grid.warmup_share(arm)
    except UserError:
        stages = [run.result["stages"] for run in _runs_of(grid, arm, runs).values()]
        return float(np.mean([s[WARMUP]["seconds"] / s[grid.stage]["seconds"] for s in stages])) if stages else None


def _curves(
    grid: Grid, arm: str, runs: dict[tuple, Run], warmup: float, unread: list[str]
) -> dict[int, list[tuple[float, float]]]:
    """Seed -> (budget used so far, value) of the full-length runs; a total includes the warm-up.

    A run whose log is damaged has none, which `unread` is told; its final value is in result.json.
    """
    metric, found = METRICS[grid.plan.metric], {}
    offset = warmup if grid.plan.setting == "substitutive" else 0.0
    for seed, run in _runs_of(grid, arm, runs).items():
        try:
            curve = run.curve(grid.stage, grid.plan.metric)
        except UserError as error:
            unread.append(f"{arm}, seed {seed}: without a curve, since its log cannot be read: {error}")
            continue
        whole = run.result["stages"][grid.stage]["samples"]
        found[seed] = [(offset + (1 - offset) * seen / whole, metric.scale * value) for seen, value in curve]
    return found


def _arm(
    grid: Grid,
    name: str,
    runs: dict[tuple, Run],
    table: dict[str, Array],
    warmup: float | None,
    curves: dict[int, list[tuple[float, float]]],
) -> ArmRow:
    plan, metric = grid.plan, METRICS[grid.plan.metric]
    target = table[plan.baseline][-1]
    final, paired = _whole(table[name][-1]), _whole(table[name][-1] - target)
    full = _runs_of(grid, name, runs)
    sample = {cell.arm: cell.config for cell in reversed(grid.cells) if cell.budget == 1 and cell.seed == plan.seeds[0]}
    changes = differences(sample[plan.baseline], sample[name], _OWN_KEYS)
    baseline = name == plan.baseline
    targets = {s: float(v) for s, v in zip(plan.seeds, target, strict=True) if np.isfinite(v)}
    return ArmRow(
        name=name,
        label=plan.arms[name].label or name.replace("_", " "),
        recipe=plan.arms[name].recipe,
        settings=plan.arms[name].set,
        start=next((run.result.get("start") for run in full.values()), None),
        changes=[change for key, (theirs, ours) in changes.items() for change in _changes(key, theirs, ours)],
        warmup=warmup,
        pairs=len(paired),
        mean=_mean(final),
        sd=float(final.std(ddof=1)) if len(final) > 1 else None,
        difference=_mean(paired if not baseline else paired[:0]),
        bootstrap=(None, None) if baseline else bootstrap_interval(paired),
        sd_difference=float(paired.std(ddof=1)) if len(paired) > 1 and not baseline else None,
        p=None if baseline else paired_p_value(paired),
        p_holm=None,
        detectable=None
        if baseline or agree(paired)
        else minimum_detectable_effect(float(paired.std(ddof=1)), len(paired)),
        flops=float(np.mean([run.flops for run in full.values()])) if full else None,
        device_seconds=float(np.mean([_device_seconds(run) for run in full.values()])) if full else None,
        equivalence=Equivalence(UNKNOWN) if baseline else equivalence(plan.budgets, table[name], target, metric.higher),
        crossing=first_crossing(curves, targets, metric.higher),
    )


def _changes(key: str, theirs: Any, ours: Any) -> list[tuple[str, Any, Any]]:
    """Split a changed key: the key itself, or those keys of a mapping that differ."""
    if not isinstance(theirs, dict) or not isinstance(ours, dict):
        return [(key, theirs, ours)]
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return [change for name in names for change in _changes(f"{key}.{name}", theirs.get(name), ours.get(name))]


def _whole(values: Array) -> Array:
    return values[np.isfinite(values)]


def _mean(values: Array) -> Mean:
    if not len(values):
        return Mean(None, None, None)
    return Mean(float(values.mean()), *paired_interval(values))


def _device_seconds(run: Run) -> float:
    return run.result["processes"] * sum(stage["seconds"] for stage in run.result["stages"].values())


def _adjusted(arms: list[ArmRow], baseline: str) -> list[ArmRow]:
    """With Holm's p values over all arms but the baseline; one without a p value counts as one that shows nothing."""
    others = [arm for arm in arms if arm.name != baseline]
    adjusted = dict(zip([a.name for a in others], holm([1.0 if a.p is None else a.p for a in others]), strict=True))
    return [replace(arm, p_holm=None if arm.p is None else adjusted[arm.name]) for arm in arms]


def _point(plan: Plan, arm: str, k: int, table: dict[str, Array]) -> Point:
    values, paired = table[arm][k], _whole(table[arm][k] - table[plan.baseline][k])
    seeds = tuple(s for s, v in zip(plan.seeds, values, strict=True) if np.isfinite(v))
    difference = _mean(paired if arm != plan.baseline else paired[:0])
    return Point(arm, plan.budgets[k], seeds, _mean(_whole(values)), len(paired), difference)


def _cells(grid: Grid, statuses: Mapping[str, Status], values: dict[tuple, float]) -> list[CellRow]:
    rows = []
    arms = list(grid.plan.arms)
    for cell in sorted(grid.cells, key=lambda c: (arms.index(c.arm), c.budget, grid.plan.seeds.index(c.seed))):
        status, measured = statuses[cell.hash], {}
        folder: Path = cell.folder
        if status.state == DONE:
            run, stages = status.run, list(status.run.result["stages"].values())
            folder = run.folder
            measured = {name: sum(s[name] for s in stages) for name in ("samples", "tokens", "flops")}
            measured |= {"device_seconds": _device_seconds(run), "device": run.result["device"]}
            measured["value"] = values[cell.arm, cell.budget, cell.seed]
        place = cell.arm, cell.budget, cell.main, cell.seed, cell.hash
        rows.append(CellRow(*place, status.state, status.note, str(folder), cell.arguments, cell.trunk, **measured))
    return rows


def _warnings(
    grid: Grid,
    arms: list[ArmRow],
    points: list[Point],
    cells: list[CellRow],
    versions: dict[str, list[str]],
    devices: list[str],
) -> list[str]:
    plan, found = grid.plan, []
    states = Counter(cell.state for cell in cells if cell.state != DONE)
    if states:
        counts = ", ".join(f"{n} {state}" for state, n in states.items())
        short = [p for p in points if len(p.seeds) < len(plan.seeds)]
        label = {arm.name: arm.label for arm in arms}
        places = [f"{label[p.arm]} at {100 * p.budget:g} % ({len(p.seeds)} of {len(plan.seeds)})" for p in short]
        listed = ", ".join(places[:_LISTED]) + (f", and {len(places) - _LISTED} more" if len(places) > _LISTED else "")
        found.append(
            f"{sum(states.values())} of {len(cells)} runs have no usable result ({counts}). Nothing stands in for "
            f"them: a difference uses the seeds that both arms have. Fewer seeds than planned: {listed}."
        )
    scatter = [arm.sd_difference for arm in arms if arm.sd_difference]
    found += plan_warnings(plan, float(np.sqrt(np.mean(np.square(scatter)))) if scatter else None)
    if any(cell.trunk for cell in cells):
        found.append(
            "Budgets below the full one are branches: cooldowns of one trunk a seed. Points of a seed share that "
            "trunk and move together, and a run with a schedule of its own may end elsewhere."
        )
    for arm in arms:
        if arm.equivalence.interval and arm.equivalence.interval.high is None and arm.equivalence.share is not None:
            top = 100 * arm.equivalence.covered[1]
            found.append(
                f"{arm.label}: its interval is open; these seeds do not rule out that {top:g} % is not enough."
            )
        if arm.equivalence.pooled:
            found.append(f"{arm.label}: its mean got worse from one budget to a larger one; it was made monotone.")
        if (arm.warmup or 0) > _LARGE:
            found.append(
                f"{arm.label}: its warm-up is {100 * arm.warmup:.3g} % of the main stage, not a small addition."
            )
    if len(plan.arms) > 2:
        found.append(
            f"{len(plan.arms) - 1} arms are compared with {arms[0].label}: each interval holds for itself alone; "
            "the adjusted p values (Holm) hold for all of them together."
        )
    if len(devices) > 1:
        found.append(f"The runs used different devices ({'; '.join(devices)}): their times cannot be compared.")
    mixed = [f"{name} {' and '.join(known)}" for name, known in versions.items() if len(known) > 1]
    if mixed:
        found.append(f"The runs used different versions: {', '.join(mixed)}.")
    return found + grid.warnings
