"""The look of the figures of arms: legible on paper, on a dark page and on a phone."""

from typing import Any

from vitwarm.budget.metrics import Metric
from vitwarm.budget.plan import PublishedValue

INK = "#010203"  # of text and axes; a page puts its own colour in its place
BASELINE, _COLOURS = "#7b8794", ("#2f7fc1", "#d97a1f", "#2c9c6d", "#9466cf", "#d1495b", "#a08a15", "#1798a8")
MARKERS = "osD^vPX*"


def colour_of(i: int) -> str:
    """The colour of an arm by its place; the baseline is the first."""
    return _COLOURS[(i - 1) % len(_COLOURS)] if i else BASELINE


def draw_published(ax: Any, full: float, point: PublishedValue, arm: int) -> None:
    """Draw a published final value, with the marker of the arm, by its place, that it corresponds to."""
    label = f"{point.label} (published)"
    ax.plot(
        full,
        point.value,
        label=None if label in ax.get_legend_handles_labels()[1] else label,
        color=INK,
        marker=MARKERS[arm % 8],
        markerfacecolor="none",
        markersize=9,
        linestyle="none",
        clip_on=False,
    )


def draw_level(ax: Any, value: float | None, across: bool = False) -> None:
    """The dashed line of a value to compare with; `across` where values run to the right."""
    if value is not None:
        draw = ax.axvline if across else ax.axhline
        draw(value, color=BASELINE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)


def stay_possible(ax: Any, metric: Metric) -> None:
    """Keep the axis between the least and the most that the metric can be."""
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, metric.least), min(high, metric.most))


def draw_legend(ax: Any) -> None:
    """The legend above the axes, in as many columns as fit."""
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


def style() -> dict[str, Any]:
    """rcParams of a figure."""
    text = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    return dict.fromkeys(text, INK) | {
        "font.family": "sans-serif",  # a page without the first one takes its own sans-serif
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 10.5,
        "text.parse_math": False,  # names of arms are the user's
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#8d99a5",
        "grid.alpha": 0.22,
        "legend.fontsize": 9.5,
    }
