"""The figures of the laboratory: a heat map of all means, dots by seed, learning curves."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vitwarm.budget.style import INK, style
from vitwarm.lab.grid import Place
from vitwarm.lab.outcomes import Findings, Row
from vitwarm.lab.plan import NONE
from vitwarm.plotting import load_matplotlib, new_figure

_DARK = "#1c2126"
_CONTROL, _COLOURS = "#7b8794", ("#2f7fc1", "#d97a1f", "#2c9c6d", "#9466cf", "#d1495b", "#a08a15", "#1798a8")


def _width(names: Sequence[str]) -> float:
    """Inches that the longest of these takes, in 9 points."""
    return 0.07 * max(map(len, names))


def heat_map(found: Findings, setting: str) -> Any:
    """Arms by tasks under one setting: the mean, and the published value in brackets."""
    rows = [row for row in found.rows if row.place.setting == setting and row.values]
    tasks = [task for task in found.plan.tasks if any(row.place.task == task for row in rows)]
    warmups, parts = [NONE, *found.plan.warmups], [NONE, *found.plan.parts]
    arms = sorted(
        {(row.place.warmup, row.place.part) for row in rows},
        key=lambda arm: (warmups.index(arm[0]), parts.index(arm[1])),
    )
    values = np.full((len(arms), len(tasks)), np.nan)
    names = [found.name(Place(tasks[0], *arm, setting), of_setting=False) for arm in arms]
    titles = [found.plan.title("tasks", task) for task in tasks]
    with load_matplotlib().rc_context(style()):
        # constrained layout gives the titles their room and leaves the map the rest, so the width follows the titles
        width = 0.3 + _width(names) + max(0.95, 0.2 + _width(titles)) * len(tasks)
        figure = new_figure(figsize=(width, 0.8 + 0.29 * len(arms)), layout="constrained")
        ax = figure.subplots()
        for row in rows:
            i, j = arms.index((row.place.warmup, row.place.part)), tasks.index(row.place.task)
            values[i, j] = mean = np.mean(row.values)
            text = f"{mean:.0f}" + (f" ({row.published[0]:.0f})" if row.published else "")
            ax.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if mean > 55 else _DARK)
        ax.imshow(values, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        ax.set_yticks(range(len(arms)), names, fontsize=9)
        ax.set_xticks(range(len(tasks)), titles, fontsize=9)
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.grid(visible=False)
    return figure


def dots(found: Findings, task: str) -> Any:
    """A line for each place of a task: a dot for each seed, a bar at the mean, a diamond at the published value."""
    rows = found.of(task)
    with load_matplotlib().rc_context(style()):
        names = [found.name(row.place) for row in rows]
        figure = new_figure(figsize=(max(7.2, 4.2 + _width(names)), 0.9 + 0.27 * len(rows)), layout="constrained")
        ax = figure.subplots()
        for place, row in enumerate(rows):
            colour = _CONTROL if row.place.warmup == NONE else _COLOURS[0]
            ax.scatter(row.values, [place] * len(row.values), s=20, color=colour, alpha=0.6, linewidth=0)
            ax.plot([np.mean(row.values)] * 2, [place - 0.3, place + 0.3], color=INK, linewidth=1.6)
            if row.published:
                look: dict[str, Any] = {"marker": "D", "s": 26, "facecolor": "none", "edgecolor": _COLOURS[1]}
                ax.scatter([row.published[0]], [place], **look)
        ax.axvline(found.plan.tasks[task].take_off, color=_CONTROL, linewidth=0.8, linestyle=":")
        ax.set_yticks(range(len(rows)), names, fontsize=8.5)
        ax.set(ylim=(len(rows) - 0.4, -0.6), xlim=(-2, 102), xlabel="accuracy, %, published mask")
    return figure


def shown_in_curves(found: Findings, task: str) -> list[Row]:
    """The control, what has a published value, and the best others, as far as there are colours."""
    rows = found.of(task)
    control = [row for row in rows if row.place.warmup == NONE][:1]
    others = [row for row in rows if row not in control]
    ranked = sorted(others, key=lambda row: (row.published is None, -(row.mean or 0.0)))
    chosen = control + ranked[: len(_COLOURS)]
    return [row for row in rows if row in chosen]


def curves(found: Findings, task: str, rows: Sequence[Row]) -> Any:
    """A thin line for each seed, from the first evaluation to the last."""
    with load_matplotlib().rc_context(style()):
        width = max(6.6, 0.8 + _width([found.name(row.place) for row in rows]))
        figure = new_figure(figsize=(width, 3.6 + 0.18 * len(rows)), layout="constrained")
        ax = figure.subplots()
        colours = iter(_COLOURS)
        control = next((row for row in rows if row.place.warmup == NONE), None)
        for row in rows:
            colour = _CONTROL if row is control else next(colours)
            for k, outcome in enumerate(o for o in row.outcomes if o.curve):
                seen, values = np.array(outcome.curve).T
                label = None if k else found.name(row.place)
                ax.plot(seen / 1e6, values, color=colour, linewidth=1.1, alpha=0.75, label=label)
        ax.axhline(found.plan.tasks[task].take_off, color=_CONTROL, linewidth=0.8, linestyle=":")
        ax.set(xlabel="sequences seen, million", ylabel="accuracy, %", ylim=(0, 101))
        figure.legend(loc="outside lower left", fontsize=8.5, frameon=False, ncols=1)
    return figure
