"""Learning curves of arms against a baseline, and their paired differences."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from vitwarm.budget.metrics import METRICS, Metric
from vitwarm.budget.plan import PublishedValue
from vitwarm.budget.style import colour_of, draw_legend, draw_level, draw_published, stay_possible, style
from vitwarm.plotting import load_matplotlib, new_figure

_EARLY = 0.1  # part of a run that may fall outside the axes of the learning curves
TOGETHER = 3  # arms beside the baseline that share the panels of the learning curves
_FEW = 20  # evaluations of a run that are marked one by one

Curves = dict[Any, list[tuple[float, float]]]  # seed -> (what was seen, value)


def learning_curves(
    runs: dict[str, Curves],
    metric: Metric,
    xlabel: str,
    *,
    level: float | None = None,
    published: Sequence[tuple[str, PublishedValue]] = (),
    warmups: dict[str, Curves] | None = None,
    end: float | None = None,
) -> Any:
    """Draw learning curves and the paired differences to the first arm: means over the seeds, bands from worst to best.

    A few arms share their panels; of many, each has a row of its own beside the first arm.

    Args:
        runs: arm -> seed -> (what was seen, value of the metric); the baseline first.
        metric: what the values are.
        xlabel: what was seen, in words.
        level: final value of the baseline.
        published: (arm, point) to draw at the end.
        warmups: arm -> seed -> (sequences seen, accuracy in per cent) of the warm-ups, for panels of their own.
        end: right end of the axis; None is that of the curves.
    """
    base, *others = runs
    places = {arm: i for i, arm in enumerate(runs)}
    rows = [others] if len(others) <= TOGETHER else [[arm] for arm in others]
    names = [metric.label, f"minus {base}, {metric.unit}", *(["accuracy of the warm-up, %"] if warmups else [])]
    xlabels = [xlabel, xlabel, "sequences seen"][: len(names)]
    end = end or max((x for curves in runs.values() for curve in curves.values() for x, _ in curve), default=1.0)
    values: list[list[float]] = [[] for _ in names]
    with load_matplotlib().rc_context(style()):
        grid = _panels(rows, len(names))
        for arms, panels in zip(rows, grid, strict=True):
            for arm in (base, *arms):
                look = {"color": colour_of(places[arm])}
                label = _with_seeds(arm, runs[arm])
                values[0] += _band(panels[0], list(runs[arm].values()), look, label)
                if arm != base:
                    values[1] += _band(panels[1], _paired(runs[arm], runs[base]), look)
                if warmups:
                    values[2] += _band(panels[2], list(warmups.get(arm, {}).values()), look)
            for arm, point in published:
                if arm in (base, *arms):
                    draw_published(panels[0], end, point, places[arm])
                    values[0].append(point.value)
            draw_level(panels[0], level)
            draw_level(panels[1], 0.0)
        for column, name in enumerate(names):
            _finish([panels[column] for panels in grid], name, xlabels[column], values[column], len(rows) > 1)
        for panels in grid:
            for ax in panels[:2]:
                ax.set_xlim(0, end)
            stay_possible(panels[0], metric)
            for ax in panels[2:]:
                ax.set_xlim(left=0)
                stay_possible(ax, METRICS["accuracy"])
        figure = grid[0][0].figure
        if len(rows) > 1:
            for (arm,), panels in zip(rows, grid, strict=True):
                panels[0].set_title(_with_seeds(arm, runs[arm]), loc="left", fontsize=9.5, color=colour_of(places[arm]))
            shown = zip(*grid[0][0].get_legend_handles_labels(), strict=True)
            rest = [(handle, label) for handle, label in shown if label != _with_seeds(others[0], runs[others[0]])]
            figure.legend(*zip(*rest, strict=True), loc="outside upper right", ncols=2, frameon=False)
        else:
            draw_legend(grid[0][0])
            grid[0][0].set_xlabel("")  # that of the panel below
            grid[0][0].tick_params(labelbottom=False)
    return figure


def _panels(rows: list[list[str]], kinds: int) -> Any:
    """Axes by row of arms and kind: below each other for a single row, else side by side."""
    if len(rows) == 1:
        heights = [3.0, 2.0, 2.0][:kinds]
        figure = new_figure(figsize=(4.8, 0.96 * sum(heights) + 0.2), layout="constrained")
        return figure.subplots(kinds, 1, height_ratios=heights).reshape(1, kinds)
    figure = new_figure(figsize=(2.4 * kinds, 1.45 * len(rows) + 0.4), layout="constrained")
    return figure.subplots(len(rows), kinds, sharex="col", sharey="col")


def _finish(column: list[Any], name: str, xlabel: str, values: list[float], many: bool) -> None:
    """Label a column of panels and set its limits to the later values, so that the difference can be seen."""
    if values:
        room = 0.06 * (max(values) - min(values)) or 1.0
        column[0].set_ylim(min(values) - room, max(values) + room)
    if many:
        above: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
        column[0].annotate(textwrap.fill(name, 20), (0, 1), (0, 22), weight="bold", **above)
    for ax in column:
        ax.xaxis.set_major_formatter(load_matplotlib().ticker.EngFormatter(sep=""))
        ax.locator_params(axis="both", nbins=5)
        if not many:
            ax.set_ylabel(textwrap.fill(name, 18))
    column[-1].set_xlabel(textwrap.fill(xlabel, 24 if many else 44))


def _with_seeds(arm: str, curves: Curves) -> str:
    return f"{arm}, {len(curves)} seed{'s' if len(curves) > 1 else ''}"


def _paired(runs: Curves, base: Curves) -> list[list[tuple[float, float]]]:
    """Differences of the seeds that both arms have; none where they were not evaluated at the same places."""
    pairs = [(run, base[seed]) for seed, run in runs.items() if base.get(seed)]
    if not all(np.shape(a) == np.shape(b) and np.allclose(np.array(a)[:, 0], np.array(b)[:, 0]) for a, b in pairs):
        return []
    return [[(x, y - z) for (x, y), (_, z) in zip(run, other, strict=True)] for run, other in pairs]


def _band(ax: Any, curves: list[list[tuple[float, float]]], look: dict[str, Any], label: str = "") -> list[float]:
    """Mean and span of curves; returns the values after the first part of the run."""
    runs = [np.array(curve).T for curve in curves if curve]
    if not runs:
        return []
    look = look | ({"marker": ".", "markersize": 5} if runs[0].shape[1] <= _FEW else {})
    if all(x.shape == runs[0].shape and np.array_equal(x[0], runs[0][0]) for x in runs):
        places, values = runs[0][0], np.stack([y for _, y in runs])
        ax.fill_between(places, values.min(0), values.max(0), color=look["color"], alpha=0.22, linewidth=0)
        ax.plot(places, values.mean(0), **look, linewidth=1.8, label=label)
    else:  # evaluated at different steps: no mean to draw
        for k, (x, y) in enumerate(runs):
            ax.plot(x, y, **look, linewidth=1, label=None if k else label)
    return [v for x, y in runs for place, v in zip(x, y, strict=True) if place >= _EARLY * x[-1]]
