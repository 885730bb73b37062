"""The figures of a study, in matplotlib, legible on paper, on a dark page and on a phone."""

import io
from typing import Any

import numpy as np

from vitwarm.budget.efficiency import ArmRow, Study
from vitwarm.budget.equivalence import NEVER, REACHED, Equivalence, Interval
from vitwarm.budget.plan import Published
from vitwarm.plotting import load_matplotlib, new_figure

INK = "#010203"  # of text and axes; a page puts its own colour in its place
_BASELINE, _COLOURS = "#7b8794", ("#2f7fc1", "#d97a1f", "#2c9c6d", "#9466cf", "#d1495b", "#a08a15", "#1798a8")
_MARKERS = "osD^vPX*"
_LINES = ("-", (0, (4, 1.2)), (0, (1.2, 1.2)))  # of the arms that share a colour, in turn
_EARLY = 0.1  # part of a run that may fall outside the axes of the learning curves


def efficiency(study: Study) -> Any:
    """Above: final value over budget. Below: the budget at which each arm is as good as the baseline with all."""
    rows = study.others
    with load_matplotlib().rc_context(house_style()):
        height = 3.5 + 0.34 * len(rows)
        figure = new_figure(figsize=(4.8, height), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.0, 0.34 * len(rows) + 0.1])
        for i, arm in enumerate(study.arms):
            _budget_line(top, study, arm, i)
        _published_values(top, study, 1.0)
        target = study.arms[0].mean.value
        if target is not None:
            top.axhline(target, color=_BASELINE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        top.set(ylabel=study.label, xscale="log")
        _legend(top)
        for row, arm in enumerate(rows):
            _needed_row(bottom, study, arm, row)
        bottom.set_yticks(range(len(rows)), [arm.name for arm in rows])
        bottom.set(ylim=(len(rows) - 0.4, -0.6), xlim=(study.budgets[0] / 1.09, 1.09))
        bottom.set_xticks(study.budgets, [f"{100 * b:.3g}" for b in study.budgets])
        bottom.minorticks_off()
        bottom.set_xlabel(f"{_budget_label(study)} (log scale)")
        bottom.tick_params(axis="y", length=0)
        bottom.grid(axis="y", visible=False)
    return figure


def curves(study: Study) -> Any:
    """Above: the metric along the full-length runs; bands span the seeds. Below: paired differences."""
    with load_matplotlib().rc_context(house_style()):
        figure = new_figure(figsize=(4.8, 5.0), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        late: dict[Any, list[float]] = {top: [], bottom: []}
        base = study.curves.get(study.baseline, {})
        for i, arm in enumerate(study.arms):
            runs = {seed: np.array(curve).T for seed, curve in study.curves.get(arm.name, {}).items() if curve}
            label = f"{arm.name}, {len(runs)} seed{'s' if len(runs) > 1 else ''}"
            look = {"color": _colour(study, i), "linestyle": _LINES[(i - 1) // len(_COLOURS) % len(_LINES) if i else 0]}
            late[top] += _band(top, list(runs.values()), look, label)
            if arm.name != study.baseline:
                late[bottom] += _band(bottom, _paired(runs, base), look)
        _published_values(top, study, 100.0)
        late[top] += [point.value for point in study.published_values]
        target = study.arms[0].mean.value
        for ax, level in ((top, target), (bottom, 0.0)):
            if level is not None:
                ax.axhline(level, color=_BASELINE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            if late[ax]:
                room = 0.06 * (max(late[ax]) - min(late[ax])) or 1.0
                ax.set_ylim(min(late[ax]) - room, max(late[ax]) + room)
        _legend(top)
        top.set(ylabel=study.label)
        bottom.set(xlabel=f"{_budget_label(study)}, so far", xlim=(0, 102))
        bottom.set_ylabel(f"minus {study.baseline}, {study.unit}")
    return figure


def _paired(runs: dict[int, Any], base: dict[int, Any]) -> list[Any]:
    """(share, difference) of the seeds that both arms have; none where they were not evaluated at the same shares."""
    pairs = [(run, np.array(base[seed]).T) for seed, run in runs.items() if base.get(seed)]
    if not all(x.shape == other.shape and np.allclose(x[0], other[0], atol=1e-6) for x, other in pairs):
        return []
    return [np.stack([x[0], x[1] - other[1]]) for x, other in pairs]


def _band(ax: Any, runs: list[Any], look: dict[str, Any], label: str | None = None) -> list[float]:
    """Mean and span of (share, value) curves; returns the values after the first part of the run."""
    if not runs:
        return []
    if all(x.shape == runs[0].shape and np.array_equal(x[0], runs[0][0]) for x in runs):
        share, values = 100 * runs[0][0], np.stack([y for _, y in runs])
        ax.fill_between(share, values.min(0), values.max(0), color=look["color"], alpha=0.22, linewidth=0)
        ax.plot(share, values.mean(0), **look, linewidth=1.8, label=label)
    else:  # evaluated at different steps: no mean to draw
        for k, (x, y) in enumerate(runs):
            ax.plot(100 * x, y, **look, linewidth=1, label=None if k else label)
    return [v for x, y in runs for share, v in zip(x, y, strict=True) if share >= _EARLY * x[-1]]


def needed(study: Study) -> Any:
    """Draw the data needed over the size of the warm-up, with published points."""
    with load_matplotlib().rc_context(house_style()):
        figure = new_figure(figsize=(4.8, 3.4), layout="constrained")
        ax = figure.subplots()
        ax.axhline(100, color=_BASELINE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        lowest = min(_main_share(study, point) for point in study.published_shares)
        for k, point in enumerate(study.published_shares):
            ax.plot(
                point.warmup,
                _main_share(study, point),
                label=f"{point.label} (published)",
                color=INK,
                marker=_MARKERS[k % 8],
                markerfacecolor="none",
                markersize=10,
                linestyle="none",
            )
        for i, arm in enumerate(study.arms):
            found = arm.equivalence
            if arm.crossing.mean is not None and arm.name != study.baseline:
                read = 100 * arm.crossing.mean
                style: dict[str, Any] = {"markerfacecolor": "none", "linestyle": "none", "markersize": 6}
                label = None if found.state == REACHED else arm.name  # one entry an arm
                ax.plot(100 * (arm.warmup or 0), read, marker="o", color=_colour(study, i), label=label, **style)
                lowest = min(lowest, read)
            if found.state == REACHED:
                low, high = _drawn(found)
                error = 100 * np.array([[found.share - low], [high - found.share]])
                ax.errorbar(
                    100 * (arm.warmup or 0),
                    100 * found.share,
                    error,
                    label=arm.name,
                    color=_colour(study, i),
                    marker=_MARKERS[i % 8],
                    markersize=6,
                    capsize=3,
                    linestyle="none",
                )
                lowest = min(lowest, 100 * low)
        ax.set(xlabel=f"warm-up, % of the full {study.data}", ylabel=f"{study.data} needed, %")
        ax.set_xlim(-0.05 * ax.get_xlim()[1], 1.1 * ax.get_xlim()[1])
        ax.set_ylim(max(0, lowest - 12), 104)
        _legend(ax)
    return figure


def _published_values(ax: Any, study: Study, full: float) -> None:
    """Draw published final values at the full budget, with the marker of the arm that they correspond to."""
    arms = [arm.name for arm in study.arms]
    for k, point in enumerate(study.published_values):
        first = point.label not in [earlier.label for earlier in study.published_values[:k]]
        ax.plot(
            full,
            point.value,
            label=f"{point.label} (published)" if first else None,
            color=INK,
            marker=_MARKERS[arms.index(point.arm) % 8],
            markerfacecolor="none",
            markersize=9,
            linestyle="none",
            clip_on=False,
        )


def _main_share(study: Study, point: Published) -> float:
    """A published point on the scale of the plan's budgets."""
    return point.needed + (point.warmup if study.setting == "substitutive" else 0.0)


def save(figure: Any) -> tuple[str, str, bytes]:
    """(SVG without a background, SVG on white, PNG) of a figure."""
    with load_matplotlib().rc_context({"svg.fonttype": "none", "svg.hashsalt": "vitwarm"}):
        found = []
        for kind, background in (("svg", "none"), ("svg", "white"), ("png", "white")):
            out = io.BytesIO()
            metadata = {"Date": None} if kind == "svg" else {}
            figure.savefig(out, format=kind, facecolor=background, dpi=160, metadata=metadata)
            found.append(out.getvalue())
    return found[0].decode(), found[1].decode(), found[2]


def _budget_line(ax: Any, study: Study, arm: ArmRow, i: int) -> None:
    points = [p for p in study.points if p.arm == arm.name and p.mean.value is not None]
    if not points:
        return
    colour, marker = _colour(study, i), _MARKERS[i % 8]
    shift = 1.02 ** (i - (len(study.arms) - 1) / 2)
    for point in points:
        ax.plot(
            [shift * point.budget] * len(point.seeds),
            [c.value for c in study.cells if c.arm == arm.name and c.budget == point.budget and c.value is not None],
            marker=".",
            markersize=4,
            color=colour,
            alpha=0.55,
            linestyle="none",
        )
    x, y = [p.budget for p in points], [p.mean.value for p in points]
    line = "--" if study.points_are == "branched" else "-"
    ax.plot(x, y, label=arm.name, color=colour, marker=marker, markersize=4.5, linewidth=1.6, linestyle=line)
    bars = [p for p in points if p.mean.low is not None]
    ax.vlines(
        [p.budget for p in bars], [p.mean.low for p in bars], [p.mean.high for p in bars], color=colour, linewidth=1
    )


def _needed_row(ax: Any, study: Study, arm: ArmRow, row: int) -> None:
    colour, found = _colour(study, row + 1), arm.equivalence
    if found.interval:
        low, high = _drawn(found)
        ax.plot([low, high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
        for open_end, end, marker in ((found.interval.low, low, "<"), (found.interval.high, high, ">")):
            if open_end is None:
                ax.plot(end, row, marker=marker, color=colour, markersize=6, clip_on=False)
    if found.state == REACHED:
        ax.plot(found.share, row, marker=_MARKERS[(row + 1) % 8], color=colour, markersize=7)
    elif found.state == NEVER:
        ax.text(study.budgets[0], row, "not reached", color=colour, va="center", fontsize=9)
    if arm.crossing.mean is not None:
        ax.plot(arm.crossing.mean, row, marker="o", markersize=6, markerfacecolor="none", color=colour)


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


def _colour(study: Study, i: int) -> str:
    return _BASELINE if study.arms[i].name == study.baseline else _COLOURS[(i - 1) % len(_COLOURS)]


def _legend(ax: Any) -> None:
    if labels := ax.get_legend_handles_labels()[1]:
        columns = (
            len(labels) if sum(map(len, labels)) + 5 * len(labels) < 54 else 2 if 2 * max(map(len, labels)) <= 46 else 1
        )
        ax.legend(
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=columns,
            frameon=False,
            columnspacing=1.2,
            handlelength=2.2,
        )


def house_style() -> dict[str, Any]:
    """matplotlib settings of all figures."""
    text = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    return dict.fromkeys(text, INK) | {
        "font.family": "DejaVu Sans",
        "font.size": 10.5,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#8d99a5",
        "grid.alpha": 0.22,
        "legend.fontsize": 9.5,
    }
