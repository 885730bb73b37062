"""Writes the report of a plan of the laboratory: a page to open in a browser, and the numbers behind it."""

import json
import shlex
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vitwarm.budget.cells import WAITING
from vitwarm.budget.page import Code, Figure, Folded, Heading, Points, Table, Text
from vitwarm.budget.page_folder import write_page
from vitwarm.budget.statistics import paired_interval
from vitwarm.lab import figures
from vitwarm.lab.outcomes import Findings, Row, control_of
from vitwarm.lab.plan import NONE

ENOUGH = 5  # seeds from which on a t interval says something
NEAR = 3.0  # points that a published value may be from our mean whatever the seeds say: its own spread is not known


def write_report(found: Findings, folder: Path) -> list[Path]:
    """Write report.html, report.md, the figures (SVG and PNG) and lab.json; each whole or not at all.

    Args:
        found: what `find_outcomes` read.
        folder: made if missing; other files in it are left alone.

    Returns:
        The files, report.html first.

    Raises:
        UserError: matplotlib or scipy is missing.
    """
    return write_page(
        folder,
        f"{found.plan.name}: tiny decoders after a warm-up",
        partial(page, found),
        _figures(found),
        {"lab.json": _numbers(found)},
    )


def _numbers(found: Findings) -> str:
    """The finished runs as JSON. Of the plan the name is enough, and a run's place is its row's."""
    rows = [replace(row, outcomes=[o for o in row.outcomes if o.value is not None]) for row in found.rows if row.values]
    content = asdict(replace(found, rows=rows)) | {"plan": found.plan.name}
    for row in content["rows"]:
        for outcome in row["outcomes"]:
            del outcome["place"]
    return json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n"


def _figures(found: Findings) -> dict[str, Any]:
    drawn = {}
    for setting in _settings(found):
        if len({row.place.warmup for row in found.rows if row.place.setting == setting and row.values}) > 1:
            drawn[f"map-{setting}"] = figures.heat_map(found, setting)
    for task in found.tasks():
        drawn[f"dots-{task}"] = figures.dots(found, task)
        drawn[f"curves-{task}"] = figures.curves(found, task, figures.shown_in_curves(found, task))
    return drawn


def _settings(found: Findings) -> list[str]:
    """Settings with a value; of a search, each of which is a try, none has a map of its own."""
    used = {row.place.setting for row in found.rows if row.values}
    return [name for name in found.plan.settings if name in used and not found.plan.settings[name].prediction]


def page(found: Findings, drawn: dict[str, str]) -> list[Any]:
    """The blocks of the page, the answer first.

    Args:
        found: the numbers.
        drawn: name -> SVG for the inside of a page.
    """
    blocks: list[Any] = [Text(text, "next" if i else "lead") for i, text in enumerate(found.headline())]
    if found.failed:
        blocks.append(Points(found.failed, "warning"))
    for setting in _settings(found):
        if f"map-{setting}" in drawn:
            blocks += [
                Heading(f"All means, {found.plan.title('settings', setting)}"),
                Figure(drawn[f"map-{setting}"], f"map-{setting}.svg", _MAP),
            ]
    if any(row.published and row.values for row in found.rows):
        blocks += [Heading("Beside the published values"), Points(_agreement(found)), Text(_AGREES, "small")]
    for task in found.tasks():
        blocks += [Heading(found.plan.title("tasks", task)), _table(found, task)]
        blocks.append(Figure(drawn[f"dots-{task}"], f"dots-{task}.svg", _dots_caption(found, task)))
        blocks.append(Figure(drawn[f"curves-{task}"], f"curves-{task}.svg", _curves_caption(found, task)))
    if any(row.low is not None for row in found.rows):
        blocks.append(Text(_INTERVALS, "small"))
    if len(found.plan.tasks) > 1 and (averages := _averages(found)).rows:
        blocks += [Heading("Means over the tasks"), averages, Text(_AVERAGES, "small")]
    if any(found.plan.settings[row.place.setting].prediction for row in found.rows if row.values):
        blocks += [Heading("What was tried, what was expected, what came"), _tries(found)]
    if (entropies := _entropies(found)).rows:
        blocks += [Heading("Attention entropy by head"), entropies, Text(_ENTROPY, "small")]
    blocks += [Heading("Every run"), _seeds(found)]
    return [*blocks, Heading("Reproduce"), *_provenance(found)]


_MAP = "Mean accuracy over the seeds, %, under the published mask; in brackets the published value."
_INTERVALS = (
    "Differences to no warm-up are paired by seed. Each interval is of one comparison: among many rows some exclude "
    "zero by chance, and the best row looks better than it is."
)
_AGREES = (
    f"A published value agrees where it lies in the 95 % t interval of our mean, from {ENOUGH} seeds on, or within "
    f"{NEAR:g} points of it: its own spread is not published."
)
_AVERAGES = "Mean of an arm over all tasks, ± a standard deviation over the seeds that it has in each of them."
_ENTROPY = (
    "Mean entropy of a token's attention over the most that it can have, on held-out sequences of the task: 0 sees one "
    "token, 1 sees all alike. Heads are sorted within their block, seed by seed, and averaged over the seeds."
)


def _dots_caption(found: Findings, task: str) -> str:
    at = f"{found.plan.tasks[task].take_off:g} %"
    return f"A dot for each seed, a bar at the mean, a diamond at the published value; taken off from {at} (dotted)."


def _curves_caption(found: Findings, task: str) -> str:
    shown, rows = len(figures.shown_in_curves(found, task)), len(found.of(task))
    chosen = f", {shown} of {rows}: no warm-up, what has a published value, and the best others" * (shown < rows)
    return (
        f"A line for each seed{chosen}. Evaluations on held-out sequences; the dotted line is where a run counts as "
        "taken off."
    )


def interval(row: Row) -> tuple[float, float] | tuple[None, None]:
    """95 % t interval of a row's mean; none of a single seed."""
    return paired_interval(np.array(row.values))


def agrees(row: Row) -> bool | None:
    """Whether the published value of a row is met; None where there is none."""
    if row.published is None or row.mean is None:
        return None
    low, high = interval(row) if len(row.values) >= ENOUGH else (None, None)
    inside = low is not None and high is not None and low <= row.published[0] <= high
    return inside or abs(row.mean - row.published[0]) <= NEAR


def _agreement(found: Findings) -> list[str]:
    lines = []
    for row in found.rows:
        if (met := agrees(row)) is not None and row.published is not None and row.mean is not None:
            value, source = row.published
            verdict = "agrees" if met else f"differs by {row.mean - value:+.1f}"
            task = found.plan.title("tasks", row.place.task)
            seeds = f"{len(row.values)} seed{'s'[: len(row.values) != 1]}"
            lines.append(
                f"{task}, {found.name(row.place)}: {row.mean:.1f} ({seeds}) against {value:g}: {verdict}. {source}"
            )
    return lines


def _mean(row: Row) -> str:
    spread = "" if row.deviation is None else f" ± {row.deviation:.1f}"
    return "" if row.mean is None else f"{row.mean:.1f}{spread}"


def _table(found: Findings, task: str) -> Table:
    heads = ["warm-up", "seeds", "accuracy, %", "minus no warm-up [95 %]", "published, %", "taken off", "million to it"]
    lines = []
    for row in found.of(task):
        difference = "" if row.difference is None else f"{row.difference:+.1f}"
        if row.low is not None:
            difference += f" [{row.low:+.1f}, {row.high:+.1f}]"
        difference += row.fewer_pairs
        to_it = f"{np.median(row.taken_off) / 1e6:.2f}" if row.taken_off else ""
        lines.append(
            [
                found.name(row.place),
                str(len(row.values)),
                _mean(row),
                difference,
                f"{row.published[0]:g}" if row.published else "",
                f"{len(row.taken_off)} of {len(row.values)}",
                to_it,
            ]
        )
    return Table(heads, lines)


def _averages(found: Findings) -> Table:
    """Arms that have some seed in every task, and the mean of the published values where each task has one."""
    arms: dict[tuple[str, ...], list[Row]] = {}
    for row in found.rows:
        arms.setdefault((row.place.warmup, row.place.part, row.place.setting), []).append(row)
    lines = []
    for rows in arms.values():
        values = [{o.seed: o.value for o in row.outcomes if o.value is not None} for row in rows]
        seeds = set(values[0]).intersection(*values)
        if len(rows) < len(found.plan.tasks) or not seeds:
            continue
        means = [float(np.mean([of_task[seed] for of_task in values])) for seed in sorted(seeds)]
        spread = f" ± {np.std(means, ddof=1):.1f}" if len(means) > 1 else ""
        given = [row.published[0] for row in rows if row.published]
        published = f"{np.mean(given):.1f}" if len(given) == len(rows) else ""
        lines.append([found.name(rows[0].place), str(len(means)), f"{np.mean(means):.1f}{spread}", published])
    return Table(["warm-up", "seeds", "accuracy, %", "published, %"], lines)


def _tries(found: Findings) -> Table:
    """Each try: what was expected, and what came."""
    lines = []
    for row in found.rows:
        prediction = found.plan.settings[row.place.setting].prediction
        control = control_of(found.plan, found.rows, row.place)
        if row.values and (prediction or row.place.warmup == NONE):
            beside = "" if control is None or control is row or control.mean is None else f"{control.mean:.1f}"
            off = f"{len(row.taken_off)} of {len(row.values)}"
            lines.append([found.name(row.place), prediction, _mean(row), beside, off])
    return Table(["try", "expected", "accuracy, %", "its control", "taken off"], lines, names=2)


def _entropies(found: Findings) -> Table:
    lines = []
    for task in found.tasks():
        for row in found.of(task):
            known = [np.sort(np.array(o.entropy), axis=1) for o in row.outcomes if o.entropy]
            if known:
                mean = np.mean(known, axis=0)
                shown = [" ".join(f"{e:.2f}" for e in heads) for heads in mean]
                lines.append([f"{found.plan.title('tasks', task)}, {found.name(row.place)}", *shown])
    depth = max((len(line) - 1 for line in lines), default=0)
    lines = [line + [""] * (depth + 1 - len(line)) for line in lines]
    return Table(["cell", *(f"block {b}" for b in range(depth))], lines)


def _seeds(found: Findings) -> Folded:
    lines = []
    for row in _begun(found):
        cells = [f"{o.seed}: {o.state if o.value is None else f'{o.value:.1f}'}" for o in row.outcomes]
        learnt = [
            f"{o.seed}: {', '.join(f'{groups} {value:.1f}'.strip() for groups, value in o.warmup.items())}"
            for o in row.outcomes
            if o.warmup
        ]
        task = found.plan.title("tasks", row.place.task)
        lines.append([f"{task}, {found.name(row.place)}", " · ".join(cells), " · ".join(learnt)])
    heads = ["cell", "accuracy by seed, %", "its warm-up on its own rule, by seed, %"]
    runs = {o.hash for row in found.rows for o in row.outcomes if o.value is not None}  # settings may share some
    return Folded(f"{len(runs)} runs", [Table(heads, lines, names=3)])


def _begun(found: Findings) -> list[Row]:
    """Rows with a value, and those that will soon have one."""
    return [row for row in found.rows if any(outcome.state != WAITING for outcome in row.outcomes)]


def _provenance(found: Findings) -> list[Any]:
    blocks: list[Any] = [Code(found.command)] if found.command else []
    blocks.append(
        Text(
            f"Devices: {'; '.join(found.devices) or 'none yet'}. {'; '.join(found.versions) or 'Nothing ran'}.", "small"
        )
    )
    lines = [f"vitwarm train {shlex.join(row.outcomes[0].arguments)}" for row in _begun(found)]
    return [*blocks, Folded("The recipe of each cell, first seed", [Code("\n".join(lines))])]
