"""What the cells of a plan came to: final values, curves, take-offs, attention entropy; read from run folders alone."""

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitwarm.analysis.inspection import attention_entropy
from vitwarm.budget.cells import FOREIGN, Status
from vitwarm.budget.runs import Run, is_finite
from vitwarm.budget.statistics import paired_interval
from vitwarm.errors import UserError
from vitwarm.exports.layout import EXPORT
from vitwarm.exports.opening import open_model
from vitwarm.files import write_text
from vitwarm.lab.grid import METRIC, STAGE, Lab, LabCell, Place
from vitwarm.lab.plan import NONE, LabPlan
from vitwarm.procedural.algorithmic import TaskStream, make_task
from vitwarm.reading import read_json
from vitwarm.trunk import Decoder

ENTROPY = "entropy.json"
FEW = 3  # seeds: the best of many rows with a single one is luck
_ROWS = 200  # sequences that the attention is measured on


@dataclass(frozen=True)
class Outcome:
    """A cell's state and, when it is done, its numbers.

    Attributes:
        value: final accuracy under the published mask, per cent; None unless it is done.
        exact: whole answers, per cent.
        curve: (sequences seen, accuracy in per cent) of each evaluation.
        take_off: sequences at the first evaluation that reaches the task's `take_off`; None where none does.
        entropy: of attention by block and head, 0 to 1, on held-out sequences of the task.
        warmup: final accuracy of each warm-up on its own rule, per cent, by the groups that it gives.
        seconds: of the task's training.
    """

    place: Place
    seed: int
    hash: str
    folder: str
    arguments: tuple[str, ...]
    state: str
    note: str = ""
    value: float | None = None
    exact: float | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)
    take_off: int | None = None
    entropy: list[list[float]] = field(default_factory=list)
    warmup: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True)
class Row:
    """The seeds of a place.

    Attributes:
        pairs: seeds that the control has as well.
        difference: mean difference to the control, over these; None without.
        published: (value in per cent, source), where there is one.
    """

    place: Place
    outcomes: list[Outcome]
    pairs: int
    difference: float | None
    low: float | None
    high: float | None
    published: tuple[float, str] | None

    @property
    def values(self) -> list[float]:
        return [o.value for o in self.outcomes if o.value is not None]

    @property
    def mean(self) -> float | None:
        return float(np.mean(self.values)) if self.values else None

    @property
    def deviation(self) -> float | None:
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    @property
    def fewer_pairs(self) -> str:
        """How many seeds a difference is of, in words, where these are not all."""
        return f" (over {self.pairs} of {len(self.values)} seeds)" if 0 < self.pairs < len(self.values) else ""

    @property
    def taken_off(self) -> list[int]:
        """Sequences at take-off, of the seeds that did."""
        return [o.take_off for o in self.outcomes if o.take_off is not None]


@dataclass(frozen=True)
class Findings:
    """All that a report shows.

    Attributes:
        rows: in the order of the plan.
        failed: what went wrong with cells, warm-ups among them, a line each.
        command: that made the report.
    """

    plan: LabPlan
    rows: list[Row]
    failed: list[str]
    done: int
    cells: int
    devices: list[str]
    versions: list[str]
    command: str

    def of(self, task: str) -> list[Row]:
        """The rows of a task that have a value."""
        return [row for row in self.rows if row.place.task == task and row.values]

    def tasks(self) -> list[str]:
        """Tasks with a value, in the order of the plan."""
        return [task for task in self.plan.tasks if self.of(task)]

    def name(self, place: Place, *, of_setting: bool = True) -> str:
        """What a place is called within its task, or within its task and setting."""
        title = self.plan.title
        parts = ["no warm-up"] if place.warmup == NONE else [title("warmups", place.warmup), title("parts", place.part)]
        settings = {row.place.setting for row in self.rows if row.values}
        return ", ".join(parts + [title("settings", place.setting)] * (of_setting and len(settings) > 1))

    def headline(self) -> list[str]:
        """How far the plan is, and what gains most on the control of each task, in sentences.

        A row of fewer than `FEW` seeds is named only where no other row of the task has as many.
        """
        lines = [f"{self.done} of {self.cells} cells are finished."]
        for task in self.tasks():
            paired = [row for row in self.of(task) if row.difference is not None]
            paired = [row for row in paired if row.pairs >= FEW] or paired
            best = max(paired or self.of(task), key=lambda row: (row.difference if paired else row.mean) or 0.0)
            name = f"{self.name(best.place)}, " * (best.place.warmup != NONE)
            text = f"{name}{best.mean:.1f} % ({len(best.values)} seed{'s'[: len(best.values) != 1]})"
            if best.difference is not None:  # over the seeds of both, as the order is
                between = "" if best.low is None else f" [{best.low:+.1f}, {best.high:+.1f}]"
                gains = "best is " if best.difference > 0 else "nothing is better than no warm-up; best is "
                text = f"{gains}{text}, {best.difference:+.1f}{between} points against no warm-up{best.fewer_pairs}"
            elif best.place.warmup == NONE:
                text += " without a warm-up"
            lines.append(f"{self.plan.title('tasks', task)}: {text}.")
        return lines


def control_of(plan: LabPlan, rows: Iterable[Row], place: Place) -> Row | None:
    """The row of the same task without a warm-up, of a setting that trains it alike."""
    wanted = _control(plan, place)
    alike = [row for row in rows if row.place.warmup == NONE and _control(plan, row.place) == wanted]
    return max(alike, key=lambda row: bool(row.values), default=None)


def _control(plan: LabPlan, place: Place) -> tuple[str, ...]:
    """What tells a place's control: the recipe of its task without a warm-up; settings of warm-ups alone share it."""
    return (place.task, *sorted(plan.task_words(place.task, NONE, NONE, place.setting)))


def find_outcomes(lab: Lab, statuses: dict[str, Status], out: Path, command: str) -> Findings:
    """Read every finished cell.

    Args:
        lab: the cells.
        statuses: hash -> state.
        out: folder of the plan, which keeps the entropies once they are measured.
        command: that is carried out.
    """
    entropies = _Entropies(out / ENTROPY)
    by_place: dict[Place, list[Outcome]] = {}
    cells = {cell.hash: cell for cell in lab.cells}
    for (place, seed), digest in lab.places.items():
        by_place.setdefault(place, []).append(_outcome(lab, place, seed, cells[digest], statuses, entropies))
    entropies.write()
    controls: dict[tuple[str, ...], dict[int, float]] = {}
    for place, found in by_place.items():
        if place.warmup == NONE:
            values = {o.seed: o.value for o in found if o.value is not None}
            controls.setdefault(_control(lab.plan, place), {}).update(values)
    rows = [_row(lab.plan, place, found, controls) for place, found in by_place.items()]
    unread = {o.hash: f"{o.state}: {o.note}" for row in rows for o in row.outcomes if o.note}
    unread |= {h: f"{s.state}: {s.note}" for h, s in statuses.items() if s.note}
    without_value = {o.hash for row in rows for o in row.outcomes if o.value is None}
    runs = [s.run for h, s in statuses.items() if s.run and h not in without_value]
    return Findings(
        lab.plan,
        rows,
        [f"{cells[h].title}: {why}" for h, why in unread.items()],
        len(runs),
        len(cells),
        sorted({str(run.result.get("device", "")) for run in runs} - {""}),
        sorted({" ".join(f"{k} {v}" for k, v in run.result.get("versions", {}).items()) for run in runs} - {""}),
        command,
    )


def _row(
    plan: LabPlan, place: Place, outcomes: list[Outcome], controls: dict[tuple[str, ...], dict[int, float]]
) -> Row:
    control = controls.get(_control(plan, place), {})
    pairs = [o.value - control[o.seed] for o in outcomes if o.value is not None and o.seed in control]
    low, high = paired_interval(np.array(pairs)) if place.warmup != NONE else (None, None)
    difference = float(np.mean(pairs)) if pairs and place.warmup != NONE else None
    published = next(
        (
            (p.value, p.source)
            for p in plan.published
            if (p.task, p.warmup, p.part) == (place.task, place.warmup, place.part)
        ),
        None,
    )
    return Row(place, outcomes, len(pairs), difference, low, high, published)


def _outcome(
    lab: Lab, place: Place, seed: int, cell: LabCell, statuses: dict[str, Status], entropies: "_Entropies"
) -> Outcome:
    status = statuses[cell.hash]
    base = (place, seed, cell.hash, str(cell.folder), cell.arguments, status.state, status.note)
    run = status.run
    if run is None:
        return Outcome(*base)
    try:
        found = Outcome(*base, **_numbers(lab, place, cell, run, statuses))
    except (UserError, ValueError, KeyError, TypeError) as error:  # one damaged folder must not hide the others
        return replace(Outcome(*base), state=FOREIGN, note=f"{run.folder} cannot be read: {error}")
    try:
        return replace(found, entropy=entropies.of(run))
    except (UserError, ValueError, KeyError, TypeError) as error:
        return replace(found, note=f"its attention cannot be measured: {error}")


def _numbers(lab: Lab, place: Place, cell: LabCell, run: Run, statuses: dict[str, Status]) -> dict[str, Any]:
    """What an `Outcome` holds of a finished run, but for the entropy."""
    curve = [(samples, 100 * value) for samples, value in run.curve(STAGE, METRIC)]
    if not all(is_finite(value) for _, value in curve):
        raise UserError(f"log.jsonl has an evaluation without a finite {METRIC}")
    warmups = {groups: statuses[warmup.hash].run for groups, warmup in lab.warmups[cell.hash].items()}
    return {
        "value": 100 * run.result["metrics"][METRIC],
        "exact": _per_cent(run, "exact"),
        "curve": curve,
        "take_off": take_off(curve, lab.plan.tasks[place.task].take_off),
        "warmup": {g: learnt for g, w in warmups.items() if w and (learnt := _per_cent(w, METRIC)) is not None},
        "seconds": run.result["stages"][STAGE]["seconds"],
    }


def _per_cent(run: Run, metric: str) -> float | None:
    """A metric of a finished run; None where its version did not measure it."""
    value = run.result["metrics"].get(metric)
    if value is not None and not is_finite(value):
        raise UserError(f"{run.folder}/result.json has no finite {metric}")
    return None if value is None else 100 * float(value)


def take_off(curve: list[tuple[int, float]], threshold: float) -> int | None:
    """Sequences at the first evaluation that reaches a threshold."""
    return next((samples for samples, value in curve if value >= threshold), None)


class _Entropies:
    """Attention entropies by recipe hash, kept in a file: measuring takes longer than reading."""

    def __init__(self, file: Path):
        self.file = file
        self.known: dict[str, list[list[float]]] = {}
        with contextlib.suppress(UserError):  # unreadable or not there: they are measured again
            self.known = {digest: found for digest, found in read_json(file).items() if _is_entropy(found)}

    def of(self, run: Run) -> list[list[float]]:
        if run.hash not in self.known:
            section = run.config.algorithmic
            assert section.task is not None  # of a task's run
            task = make_task(section.task, section.size)
            rows = TaskStream(task, run.config.seed, "validation").rows(0, _ROWS)
            last = rows.answer.shape[1] - rows.answer[:, ::-1].argmax(1) - 1  # the last token that is predicted
            visible = torch.arange(rows.tokens.shape[1] - 1) < torch.from_numpy(last)[:, None]
            model = open_model(str(run.folder / EXPORT)).model  # RUN alone would also take that of a warm-up
            assert isinstance(model, Decoder)
            found = attention_entropy(model, torch.from_numpy(rows.tokens[:, :-1]), visible)
            self.known[run.hash] = [[round(float(e), 4) for e in heads] for heads in found]
        return self.known[run.hash]

    def write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.file, json.dumps(self.known, indent=0) + "\n")


def _is_entropy(found: object) -> bool:
    """Whether what a file says of a model is a share for each head of each block."""
    if not isinstance(found, list) or not found or not all(isinstance(heads, list) and heads for heads in found):
        return False
    return len({len(heads) for heads in found}) == 1 and all(is_finite(share) for heads in found for share in heads)
