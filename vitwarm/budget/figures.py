"""The figures of a study, in matplotlib, legible on paper, on a dark page and on a phone."""

import textwrap
from typing import Any

import numpy as np

from vitwarm.budget.curves import Curves, learning_curves
from vitwarm.budget.efficiency import ArmRow, Study
from vitwarm.budget.equivalence import NEVER, REACHED, Equivalence, Interval
from vitwarm.budget.metrics import METRICS
from vitwarm.budget.plan import Published
from vitwarm.budget.style import (
    BASELINE,
    INK,
    MARKERS,
    colour_of,
    draw_legend,
    draw_level,
    draw_published,
    stay_possible,
    style,
)
from vitwarm.plotting import load_matplotlib, new_figure

_LINE = 0.19  # inches: height of a line of text


def efficiency(study: Study) -> Any:
    """Above: final value over budget. Below: the budget at which each arm is as good as the baseline with all."""
    rows = study.others
    with load_matplotlib().rc_context(style()):
        wrapped = [textwrap.fill(arm.label, 18) for arm in rows]
        names = [
            f"{n}\nnot reached" if arm.equivalence.state == NEVER else n for n, arm in zip(wrapped, rows, strict=True)
        ]
        rooms = [max(2, name.count("\n") + 1) + 0.8 for name in names]  # of each row, in lines of text
        places, height = np.cumsum(rooms) - np.array(rooms) / 2, _LINE * sum(rooms)
        figure = new_figure(figsize=(4.8, 3.5 + height), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.0, height + 0.1])
        for i, arm in enumerate(study.arms):
            _budget_line(top, study, arm, i)
        _published_values(top, study, 1.0)
        draw_level(top, study.arms[0].mean.value)
        top.set(ylabel=study.label, xscale="log")
        stay_possible(top, METRICS[study.metric])
        draw_legend(top)
        for i, (arm, place) in enumerate(zip(rows, places, strict=True), start=1):
            _needed_row(bottom, arm, i, place)
        bottom.set_yticks(places, names)
        read = [arm.crossing.mean for arm in rows if arm.crossing.mean is not None]
        first = min([study.budgets[0], *read])
        bottom.set(ylim=(sum(rooms), 0), xlim=(first / 1.09, 1.09))
        bottom.set_xticks(study.budgets, [f"{100 * b:.3g}" for b in study.budgets])
        bottom.minorticks_off()
        bottom.set_xlabel(textwrap.fill(f"{_budget_label(study)} (log scale)", 44))
        bottom.tick_params(axis="y", length=0)
        bottom.grid(axis="y", visible=False)
        for ax in (top, bottom):
            ax.spines["bottom"].set_bounds(first, 1.0)  # what lies beside it is room for points side by side
    return figure


def curves(study: Study) -> Any:
    """The learning curves of the full-length runs."""
    runs = {arm.label: _percent(study.curves.get(arm.name, {})) for arm in study.arms}
    marks = [(study.labels[point.arm], point) for point in study.published_values]
    metric, xlabel = METRICS[study.metric], f"{_budget_label(study)}, so far"
    return learning_curves(runs, metric, xlabel, level=study.arms[0].mean.value, published=marks, end=100.0)


def _percent(curves: dict[int, list[tuple[float, float]]]) -> Curves:
    return {seed: [(100 * share, value) for share, value in curve] for seed, curve in curves.items()}


def needed(study: Study) -> Any:
    """Draw the data needed over the size of the warm-up, with published points."""
    with load_matplotlib().rc_context(style()):
        figure = new_figure(figsize=(4.8, 3.4), layout="constrained")
        ax = figure.subplots()
        ax.axhline(100, color=BASELINE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        lowest = min(_main_share(study, point) for point in study.published_shares)
        for k, point in enumerate(study.published_shares):
            ax.plot(
                point.warmup,
                _main_share(study, point),
                label=f"{point.label} (published)",
                color=INK,
                marker=MARKERS[k % 8],
                markerfacecolor="none",
                markersize=10,
                linestyle="none",
                clip_on=False,
            )
        for i, arm in enumerate(study.arms):
            found = arm.equivalence
            if arm.crossing.mean is not None and arm.name != study.baseline:
                read = 100 * arm.crossing.mean
                ring: dict[str, Any] = {"marker": "o", "markerfacecolor": "none", "linestyle": "none", "markersize": 6}
                label = None if found.state == REACHED else arm.label  # one entry an arm
                ax.plot(100 * (arm.warmup or 0), read, color=colour_of(i), label=label, clip_on=False, **ring)
                lowest = min(lowest, read)
            if found.state == REACHED:
                low, high = _drawn(found)
                error = 100 * np.array([[found.share - low], [high - found.share]])
                ax.errorbar(
                    100 * (arm.warmup or 0),
                    100 * found.share,
                    error,
                    label=arm.label,
                    color=colour_of(i),
                    marker=MARKERS[i % 8],
                    markersize=6,
                    capsize=3,
                    linestyle="none",
                    clip_on=False,
                )
                lowest = min(lowest, 100 * low)
        ax.set(xlabel=f"warm-up, % of the full {study.data}", ylabel=f"{study.data} needed, %")
        ax.set_xlim(0, 1.1 * ax.get_xlim()[1])
        ax.set_ylim(max(0, lowest - 12), 104)
        draw_legend(ax)
    return figure


def _published_values(ax: Any, study: Study, full: float) -> None:
    """Draw published final values at the full budget, with the marker of the arm that they correspond to."""
    names = list(study.labels)
    for point in study.published_values:
        draw_published(ax, full, point, names.index(point.arm))


def _main_share(study: Study, point: Published) -> float:
    """A published point on the scale of the plan's budgets."""
    return point.needed + (point.warmup if study.setting == "substitutive" else 0.0)


def _budget_line(ax: Any, study: Study, arm: ArmRow, i: int) -> None:
    points = [p for p in study.points if p.arm == arm.name and p.mean.value is not None]
    if not points:
        return
    colour, marker = colour_of(i), MARKERS[i % 8]
    # beside each other: no bar hides another one, and no budget's points reach into the next one's
    places = np.log(study.budgets)
    apart = min([0.03, 0.14 / len(study.arms), *(0.6 * np.diff(places) / len(study.arms))])
    shift = np.exp(apart * (i - (len(study.arms) - 1) / 2))
    for point in points:
        ax.plot(
            [shift * point.budget] * len(point.seeds),
            [c.value for c in study.cells if c.arm == arm.name and c.budget == point.budget and c.value is not None],
            marker=".",
            markersize=4,
            color=colour,
            alpha=0.55,
            linestyle="none",
            clip_on=False,
        )
    x, y = [shift * p.budget for p in points], [p.mean.value for p in points]
    line = "--" if study.points_are == "branched" else "-"
    look = {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 1.6, "linestyle": line, "clip_on": False}
    ax.plot(x, y, label=arm.label, **look)
    bars = [(place, p.mean) for place, p in zip(x, points, strict=True) if p.mean.low is not None]
    ax.vlines([place for place, _ in bars], [m.low for _, m in bars], [m.high for _, m in bars], color=colour, lw=1)


def _needed_row(ax: Any, arm: ArmRow, i: int, row: float) -> None:
    colour, found = colour_of(i), arm.equivalence
    if found.interval:
        low, high = _drawn(found)
        ax.plot([low, high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
        for open_end, end, marker in ((found.interval.low, low, "<"), (found.interval.high, high, ">")):
            if open_end is None:
                ax.plot(end, row, marker=marker, color=colour, markersize=6, clip_on=False)
    if found.state == REACHED:
        ax.plot(found.share, row, marker=MARKERS[i % 8], color=colour, markersize=7)
    if arm.crossing.mean is not None:  # below the interval, which would run through it
        ax.plot(arm.crossing.mean, row + 0.75, marker="o", markersize=6, markerfacecolor="none", color=colour)


def _drawn(found: Equivalence) -> tuple[float, float]:
    """The ends at which an interval is drawn: an open end goes to the last measured budget."""
    ends = found.interval or Interval(found.share, found.share)
    return (
        found.covered[0] if ends.low is None else ends.low,
        found.covered[1] if ends.high is None else ends.high,
    )


def _budget_label(study: Study) -> str:
    whole = f"{study.data}, warm-up included" if study.setting == "substitutive" else study.data
    return f"{whole}, % of the full budget"
