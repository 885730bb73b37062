"""Arms against a baseline over the same seeds: table, paired differences with intervals, learning curves."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitwarm.budget.comparable import ARM_KEYS, SEED_KEYS, check_tuned, other_data
from vitwarm.budget.curves import Curves, learning_curves
from vitwarm.budget.metrics import METRICS, counted
from vitwarm.budget.runs import WARMUP, Run, is_finite
from vitwarm.budget.statistics import holm, paired_interval, paired_p_value, without_interval
from vitwarm.budget.style import INK, colour_of, draw_level, style
from vitwarm.checks import MAIN_STAGES, differences, main_stage, value_of
from vitwarm.errors import UserError
from vitwarm.files import write_text
from vitwarm.plotting import load_matplotlib, new_figure, save_figure


@dataclass(frozen=True)
class ComparedArm:
    """One line of the table; differences are against the baseline, over the same seeds.

    Attributes:
        metric: key of `METRICS`, in whose unit all values are: the headline of the runs' main stage.
        per_seed: final value by seed.
        mean, sd: over seeds; sd is the sample standard deviation, None for one seed.
        difference: paired mean difference to the baseline; None for the baseline itself.
        low, high: its 95 % t interval; None for one seed.
        holm: p value of the paired t test, adjusted for as many comparisons as the table makes; None for one seed.
        flops: mean training FLOPs of a run, all stages, and of the runs whose weights it started from.
        device_seconds: likewise.
        warmup_share: samples of the warm-ups as a share of the main stage's.
        unknown: sources of weights whose cost is not known and not counted.
        tuned: the values of keys that were chosen for each arm by itself.
    """

    arm: str
    metric: str
    per_seed: dict[int, float]
    mean: float
    sd: float | None
    difference: float | None
    low: float | None
    high: float | None
    holm: float | None
    flops: float
    device_seconds: float
    warmup_share: float
    unknown: list[str]
    tuned: dict[str, object]


def check_comparable(arms: dict[str, list[Run]], tuned: Sequence[str] = ()) -> None:
    """Refuse arms that differ in anything but how the trunk starts, or whose seeds do not pair.

    Args:
        arms: name -> runs.
        tuned: keys that may differ between arms besides, since each arm's were chosen for it; not between its seeds.

    Raises:
        UserError: with the key that differs.
    """
    check_tuned(tuned, "")
    if len(arms) < 2:
        raise UserError("a comparison needs at least two arms: baseline=GLOB other=GLOB")
    first_arm, first_runs = next(iter(arms.items()))
    seeds = [r.config.seed for r in first_runs]
    for arm, runs in arms.items():
        if [r.config.seed for r in runs] != seeds:
            raise UserError(
                f"arms {first_arm} and {arm} have different seeds ({seeds}, {[r.config.seed for r in runs]}); "
                "a paired comparison needs equal seeds"
            )
        for run in runs:
            if changed := differences(runs[0].config, run.config, SEED_KEYS):
                raise UserError(f"{run.folder} differs from {runs[0].folder} in {next(iter(changed))}, in one arm")
            if (stage := main_stage(run.config)) is None:
                raise UserError(f"{run.folder} is a warm-up alone; compare runs with a main stage")
            if (metric := MAIN_STAGES[stage].headline) not in run.result["metrics"]:
                raise UserError(f"{run.folder} has measured no {metric}; compare runs with validation data")
            if not is_finite(value := run.result["metrics"][metric]):
                raise UserError(f"{run.folder}: its {metric} is {value!r}, no finite number; leave this seed out")
            counts = run.result["metrics"].get("count"), run.result["stages"].get(stage, {}).get("samples")
            if not all(is_finite(count) and count > 0 for count in counts):
                raise UserError(f"{run.folder}: was trained or measured on nothing; leave this seed out")
            if differing := other_data(run, first_runs[0]):
                raise UserError(f"{run.folder} {differing}; run it again, or leave this seed out")
            for key, (theirs, value) in differences(first_runs[0].config, run.config, (*ARM_KEYS, *tuned)).items():
                raise UserError(
                    f"{run.folder} differs from {first_runs[0].folder} in {key} ({value!r} against {theirs!r}); "
                    "arms may differ only in how the trunk starts"
                )


def compared(arms: dict[str, list[Run]]) -> tuple[str, str]:
    """(main stage of the runs, its headline metric)."""
    stage = main_stage(next(iter(arms.values()))[0].config)
    assert stage is not None  # `check_comparable` refuses the rest
    return stage, MAIN_STAGES[stage].headline


def compare(arms: dict[str, list[Run]], tuned: Sequence[str] = ()) -> list[ComparedArm]:
    """The table, baseline (the first arm) first; arguments as in `check_comparable`.

    Raises:
        UserError: the arms cannot be compared.
    """
    check_comparable(arms, tuned)
    stage, metric = compared(arms)
    scale = METRICS[metric].scale
    found = {arm: np.array([scale * r.result["metrics"][metric] for r in runs]) for arm, runs in arms.items()}
    baseline, *others = found.values()
    p_values = [paired_p_value(values - baseline) for values in others]
    if len(baseline) > 1:
        p_values = holm([1.0 if p is None else p for p in p_values])  # None: equal pairs
    rows = []
    for i, (arm, runs) in enumerate(arms.items()):
        values, costs = found[arm], [r.full_cost() for r in runs]
        low, high = paired_interval(values - baseline)
        samples = [r.result["stages"][stage]["samples"] for r in runs]
        rows.append(
            ComparedArm(
                arm=arm,
                metric=metric,
                per_seed={r.config.seed: float(v) for r, v in zip(runs, values, strict=True)},
                mean=float(values.mean()),
                sd=float(values.std(ddof=1)) if len(values) > 1 else None,
                difference=float((values - baseline).mean()) if i else None,
                low=low if i else None,
                high=high if i else None,
                holm=[None, *p_values][i],
                flops=float(np.mean([c.flops for c in costs])),
                device_seconds=float(np.mean([c.device_seconds for c in costs])),
                warmup_share=float(np.mean([c.warmup_samples / n for c, n in zip(costs, samples, strict=True)])),
                unknown=sorted({source for c in costs for source in c.unknown}),
                tuned={key: value_of(runs[0].config, key) for key in tuned},
            )
        )
    return rows


def markdown(rows: list[ComparedArm], arms: dict[str, list[Run]]) -> str:
    """The table as Markdown, with its seeds, intervals, costs and recipe hashes."""
    seeds = ", ".join(str(s) for s in rows[0].per_seed)
    several, keys = len(rows) > 2 and rows[1].holm is not None, list(rows[0].tuned)
    metric, first = METRICS[rows[0].metric], arms[rows[0].arm][0]
    count, unit = first.result["metrics"]["count"], counted(first.config, compared(arms)[0])
    columns = ["arm", "mean ± sd", "by seed", "difference [95 %]", *(["p, Holm"] if several else []), *keys]
    columns += ["warm-up / main samples", "FLOPs / baseline's", "device-seconds"]
    lines = [
        f"Final {metric.label}, over {count:.0f} {unit}; seeds {seeds}; differences are paired by seed, "
        "with 95 % t intervals. Costs include the runs that an arm's weights came from.",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    form = metric.form
    for r in rows:
        mean = f"{r.mean:{form}}" + ("" if r.sd is None else f" ± {r.sd:{form}}")
        values = ", ".join(f"{v:{form}}" for v in r.per_seed.values())
        difference = "" if r.difference is None else f"{r.difference:+{form}}"
        if r.low is not None and r.difference is not None:
            difference += f" [{r.low:+{form}}, {r.high:+{form}}]"
        cells = [r.arm.replace("|", "\\|"), mean, values, difference]
        cells += ["" if r.holm is None else f"{r.holm:.2g}"] if several else []
        cells += [str(r.tuned[key]) for key in keys]
        cells += [f"{100 * r.warmup_share:.3g} %", f"{r.flops / rows[0].flops:.2f}", f"{r.device_seconds:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    if keys:
        lines += [f"Chosen for each arm by itself: {', '.join(keys)}.", ""]
    for r in rows:
        lines += [f"{r.arm}: the cost of {', '.join(r.unknown)} is not known and not counted.", ""] if r.unknown else []
    for arm, runs in arms.items():
        given = {(r.config.init_from, *r.config.transfer.sources.values()) for r in runs}
        if len(runs) > 1 and len(given) == 1 and any(next(iter(given))):
            lines += [f"{arm}: every seed starts from the same weights, so its spread lacks that of the warm-up.", ""]
    results = [run.result for runs in arms.values() for run in runs]
    if len(devices := {str(r.get("device")) for r in results}) > 1:
        lines += [f"The runs used different devices ({'; '.join(sorted(devices))}): their times do not compare.", ""]
    versions = sorted({f"{name} {version}" for r in results for name, version in r["versions"].items()})
    if mixed := [v for v in versions if sum(v.split()[0] == other.split()[0] for other in versions) > 1]:
        lines += [f"The runs used different versions: {', '.join(mixed)}.", ""]
    if several:
        lines += [
            f"p, Holm: two-sided paired t test, adjusted for {len(rows) - 1} comparisons; of {len(rows) - 1} "
            f"intervals, {0.05 * (len(rows) - 1):.2g} would exclude zero by chance.",
            "",
        ]
    lines += [f"{r.arm}: {_verdict(r, rows[0].arm, len(rows) - 1)}" for r in rows[1:]]
    lines += ["", "| arm | recipe | hashes |", "|---|---|---|"]
    for arm, runs in arms.items():
        lines.append(f"| {arm} | {runs[0].config.name} | {', '.join(r.hash for r in runs)} |")
    return "\n".join(lines) + "\n"


def _verdict(row: ComparedArm, baseline: str, comparisons: int) -> str:
    if row.low is None or row.high is None:
        return f"{without_interval(len(row.per_seed))}; no difference is detectable."
    if row.low <= 0 <= row.high:
        return f"the interval includes zero; no difference to {baseline} is detectable with these seeds."
    if row.holm is not None and row.holm >= 0.05:
        return (
            f"the interval excludes zero, but not among {comparisons} comparisons (p {row.holm:.2g} by Holm); no "
            f"difference to {baseline} is detectable with these seeds."
        )
    return f"the interval excludes zero; these seeds show a difference to {baseline}."


def plot(rows: list[ComparedArm], curves: dict[str, dict[Any, dict[str, Any]]], stage: str, path: Path) -> None:
    """Draw the headline metric over samples seen, the differences to the baseline, the accuracy of the warm-ups.

    Args:
        rows: the table, baseline first.
        curves: arm -> seed -> stage -> (samples seen, value) in units of result.json.
        stage: the main stage.
        path: PNG to write.

    Raises:
        UserError: matplotlib is missing.
    """
    metric = METRICS[rows[0].metric]
    shown: dict[str, dict[str, Curves]] = {
        kind: {
            arm: {seed: [(x, scale * y) for x, y in stages[kind]] for seed, stages in seeds.items() if stages.get(kind)}
            for arm, seeds in curves.items()
        }
        for kind, scale in ((stage, metric.scale), (WARMUP, METRICS["accuracy"].scale))
    }
    warmups = shown[WARMUP] if any(shown[WARMUP].values()) else None
    seen = f"{'images' if stage == 'images' else 'sequences'} seen"
    figure = learning_curves(shown[stage], metric, seen, level=rows[0].mean, warmups=warmups)
    save_figure(figure, path, dpi=160)


def plot_differences(rows: list[ComparedArm], path: Path) -> None:
    """Draw the differences to the baseline, one line for each arm: each seed, their mean and its interval."""
    (baseline, *others), metric = rows, METRICS[rows[0].metric]
    with load_matplotlib().rc_context(style()):
        figure = new_figure(figsize=(4.8, 1.5 + 0.36 * len(others)), layout="constrained")
        ax = figure.subplots()
        for place, r in enumerate(others):
            by_seed = [r.per_seed[seed] - value for seed, value in baseline.per_seed.items()]
            apart = r.low is not None and (r.low > 0 or r.high < 0)
            ax.plot(by_seed, [place + 0.28] * len(by_seed), "o", color=INK, markersize=3.5, markerfacecolor="none")
            if r.low is not None:
                ax.plot([r.low, r.high], [place, place], color=colour_of(1), linewidth=2.6 if apart else 1.1)
            ax.plot(r.difference, place, "o", color=colour_of(1), markersize=6)
        draw_level(ax, 0.0, across=True)
        ax.set_yticks(range(len(others)), [textwrap.fill(r.arm, 26) for r in others], fontsize=9)
        title = "dots: means, with 95 % t intervals, thick where they exclude zero; circles: seeds"
        ax.set_title(textwrap.fill(title, 60), fontsize=9, loc="right")
        ax.set(
            ylim=(len(others) - 0.4, -0.6),
            xlabel=textwrap.fill(f"{metric.label.partition(',')[0]} minus that of {baseline.arm}, {metric.unit}", 34),
        )
        ax.grid(axis="y", visible=False)
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
    save_figure(figure, path, dpi=160)


def report(arms: dict[str, list[Run]], folder: Path, tuned: Sequence[str] = ()) -> str:
    """Write compare.md, compare.json, compare.png and differences.png into a folder; returns the Markdown."""
    rows = compare(arms, tuned)
    text = markdown(rows, arms)
    folder.mkdir(parents=True, exist_ok=True)
    main, headline = compared(arms)
    shown = ((WARMUP, "accuracy"), (main, headline))
    curves: dict[str, dict[Any, dict[str, Any]]] = {
        arm: {r.config.seed: {stage: r.curve(stage, metric) for stage, metric in shown} for r in runs}
        for arm, runs in arms.items()
    }
    content = {"rows": [asdict(r) for r in rows], "curves": curves, "versions": arms[rows[0].arm][0].result["versions"]}
    write_text(folder / "compare.md", text)
    write_text(folder / "compare.json", json.dumps(content, indent=1) + "\n")
    plot(rows, curves, main, folder / "compare.png")
    plot_differences(rows, folder / "differences.png")
    return text
