"""Compares finished runs seed by seed: final metrics of arms, paired differences to the first one, a dot a seed.

For metrics whose mean says little, such as a task that a tiny model either solves or does not.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitwarm.budget.comparable import ARM_KEYS, SEED_KEYS, other_data
from vitwarm.budget.metrics import metric_of
from vitwarm.budget.runs import Run, is_finite
from vitwarm.budget.statistics import paired_interval
from vitwarm.budget.style import INK, colour_of, draw_level, style
from vitwarm.checks import differences
from vitwarm.errors import UserError
from vitwarm.plotting import load_matplotlib, new_figure, save_figure


@dataclass(frozen=True)
class SeedRow:
    """One metric of an arm.

    Attributes:
        panel, arm: an arm PANEL/ARM is compared within its panel, with the first arm there.
        values: by seed; per cent, but for losses and perplexities.
        difference: mean difference to the first arm, paired by seed; None for that arm itself.
        low, high: its 95 % t interval; None for a single seed.
        start: how the main stage's weights came about, of the first seed.
        other_keys: keys in which the recipe differs from the first arm's beyond its start.
    """

    panel: str
    arm: str
    metric: str
    values: dict[int, float]
    difference: float | None
    low: float | None
    high: float | None
    recipe: str
    hashes: list[str]
    start: str
    other_keys: list[str]


def seed_rows(arms: dict[str, list[Run]], metrics: list[str]) -> list[SeedRow]:
    """Rows by panel, metric and arm.

    Raises:
        UserError: an arm without the metric, of several recipes, or with other seeds than its panel's first arm; or
            runs of a panel that read different data.
    """
    panels: dict[str, dict[str, list[Run]]] = {}
    for name, runs in arms.items():
        panel, slash, arm = name.rpartition("/")
        panels.setdefault(panel, {})[arm] = runs
    rows = []
    for panel, members in panels.items():
        leader = next(iter(members.values()))[0]
        for runs in members.values():
            for run in runs:
                if changed := differences(runs[0].config, run.config, SEED_KEYS):
                    raise UserError(f"{run.folder} differs from {runs[0].folder} in {next(iter(changed))}, in one arm")
                if differing := other_data(run, leader):
                    raise UserError(f"{run.folder} {differing}; run it again, or leave it out")
        for metric in metrics:
            first: dict[int, float] = {}
            for arm, runs in members.items():
                if any(metric not in r.result["metrics"] for r in runs):
                    raise UserError(f"{arm} has no metric {metric}; it has {', '.join(runs[0].result['metrics'])}")
                if wrong := next((r for r in runs if not is_finite(r.result["metrics"][metric])), None):
                    raise UserError(f"{wrong.folder}: its {metric} is no finite number; leave this seed out")
                scale = metric_of(metric).scale
                values = {r.config.seed: scale * r.result["metrics"][metric] for r in runs}
                baseline, first = not first, first or values
                if list(values) != list(first):
                    raise UserError(f"{arm} has seeds {list(values)}, not {list(first)}; pairs need the same ones")
                paired = np.array(list(values.values())) - np.array(list(first.values()))
                low, high = (None, None) if baseline else paired_interval(paired)
                rows.append(
                    SeedRow(
                        panel,
                        arm,
                        metric,
                        values,
                        None if baseline else float(paired.mean()),
                        low,
                        high,
                        runs[0].config.name,
                        [r.hash for r in runs],
                        str(runs[0].result.get("start", "")),
                        list(differences(leader.config, runs[0].config, ARM_KEYS)),
                    )
                )
    return rows


def markdown(rows: list[SeedRow]) -> str:
    """A table for each panel and metric."""
    lines, before = [], None
    for r in rows:
        if (r.panel, r.metric) != before:
            title = f"{r.panel} {r.metric}".strip().replace("|", "\\|")
            lines += ["", f"| {title} | mean | sd | difference [95 %] | each seed |", "|---|---|---|---|---|"]
            before = r.panel, r.metric
        digits = 1 if metric_of(r.metric).scale == 100 else 3
        values = np.array(list(r.values.values()))
        deviation = f"{values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
        difference = "" if r.difference is None else f"{r.difference:+.{digits}f}"
        if r.low is not None:
            difference += f" [{r.low:+.{digits}f}, {r.high:+.{digits}f}]"
        each = ", ".join(f"{v:.{digits}f}" for v in values)
        arm = r.arm.replace("|", "\\|")
        lines.append(f"| {arm} | {values.mean():.{digits}f} | {deviation} | {difference} | {each} |")
    others = {f"{r.panel} {r.arm}".strip(): r.other_keys for r in rows if r.other_keys}
    more = [f"{arm} differs from the first arm by more than its start: {', '.join(k)}." for arm, k in others.items()]
    return "\n".join([*lines[1:], *([""] if more else []), *more])


def plot(rows: list[SeedRow], path: Path) -> None:
    """A panel for each panel of the rows: a line for each arm, on it a dot for each seed and a bar at the mean.

    Raises:
        UserError: matplotlib is missing, or there are several metrics.
    """
    if len(metrics := {r.metric for r in rows}) > 1:
        raise UserError(f"one figure shows one metric, not {', '.join(sorted(metrics))}; choose one with metrics=")
    panels: dict[str, list[SeedRow]] = {}
    for r in rows:
        panels.setdefault(r.panel, []).append(r)
    metric = metric_of(rows[0].metric)
    heights = [len(p) + 1.5 for p in panels.values()]
    with load_matplotlib().rc_context(style()):
        figure = new_figure(figsize=(4.8, 0.28 * sum(heights) + 0.6), layout="constrained")
        axes = figure.subplots(len(panels), squeeze=False, sharex=True, height_ratios=heights)[:, 0]
        for ax, (panel, members) in zip(axes, panels.items(), strict=True):
            for place, r in enumerate(members):
                values = np.array(list(r.values.values()))
                look = {"color": colour_of(min(place, 1)), "markersize": 4.5, "alpha": 0.6, "clip_on": False}
                ax.plot(values, np.full(len(values), place), "o", markeredgewidth=0, **look)
                ax.plot([values.mean()] * 2, [place - 0.36, place + 0.36], color=INK, linewidth=1.5, clip_on=False)
            draw_level(ax, float(np.mean(list(members[0].values.values()))), across=True)
            ax.set_yticks(range(len(members)), [r.arm for r in members], fontsize=9)
            ax.set_ylim(len(members) - 0.4, -0.6)
            ax.set_title(panel, loc="left", fontsize=10.5)
            ax.grid(axis="y", visible=False)
            ax.tick_params(axis="y", length=0)
        low, high = axes[-1].get_xlim()
        axes[-1].set_xlim(max(low, metric.least), min(high, metric.most))
        axes[-1].set_xlabel(metric.label)
    save_figure(figure, path, dpi=160)
