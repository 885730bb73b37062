"""Figures of sequences: arcs between related positions, the depth of brackets, the space-time of automata."""

from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Patch, Rectangle

from vitwarm.plotting import new_figure, save_figure
from vitwarm.procedural.brackets import BracketRule
from vitwarm.procedural.composite import Mixture
from vitwarm.procedural.eca import Eca
from vitwarm.procedural.rule import Rule, Sequences
from vitwarm.procedural.show import colours, content_of, glyphs

__all__ = ["plot"]

_HIDDEN, _HIDDEN_CELL, _OPEN = "#111111", "#6ea8e0", "#d62728"  # hidden tokens: determined (a frame, a cell), and not
_MAX_WIDTH = 24.0  # inches


def plot(rule: Rule, rows: Sequences, masked: np.ndarray, path: Path) -> None:
    """Write a PNG of the sequences: hidden tokens are framed, black where they are determined and red where not."""
    count, length = rows.tokens.shape
    title, (rule, content) = _title(rule), content_of(rule, length)
    if isinstance(rule, Eca):
        figure = _automata(rule, rows, masked, content)
    else:
        cell = min(0.27, _MAX_WIDTH / length)  # inches
        depth = isinstance(rule, BracketRule)
        arcs = [_tallest(rule, row) for row in rows.tokens]
        heights = [1.4 + arc + 3.0 * depth for arc in arcs]  # in cells
        size = cell * (length + 2) + 0.6, cell * sum(heights) + 0.1 * count + 0.4
        figure = new_figure(figsize=size, layout="constrained")
        panels = figure.subplots(count, 1, squeeze=False, height_ratios=heights)[:, 0]
        for index, (panel, arc) in enumerate(zip(panels, arcs, strict=True)):
            _row(panel, rule, rows, masked, index, arc, depth, cell)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    labels = {"hidden, determined": _HIDDEN, "hidden, not determined": _OPEN}
    if isinstance(rule, Eca):
        handles = [Patch(color=c, label=text) for text, c in zip(labels, (_HIDDEN_CELL, _OPEN), strict=True)]
    else:
        handles = [Patch(facecolor="white", edgecolor=c, linewidth=1.8, label=text) for text, c in labels.items()]
    corner: Literal["outside lower left", "upper right"] = "upper right"
    if isinstance(rule, Eca):  # few cells are narrower than a title
        corner = "outside lower left"
    figure.legend(handles=handles, loc=corner, ncols=2, fontsize=8, frameon=False)
    save_figure(figure, path, dpi=110, metadata={"Software": None})


def _title(rule: Rule) -> str:
    inner = rule.rules if isinstance(rule, Mixture) else [rule.rule] if hasattr(rule, "rule") else []
    changed = {
        name: value
        for name, value in rule.spec().items()
        if name not in ("name", "rule", "rules") and value != type(rule).__dataclass_fields__[name].default
    }
    text = rule.name + "".join(f"  {name}={value}" for name, value in changed.items())
    return text + (" of " + " | ".join(_title(part) for part in inner) if inner else "")


def _tallest(rule: Rule, row: np.ndarray) -> float:
    """Height of the tallest arc, in cells."""
    return min(9.0, 0.4 + 0.22 * max((b - a for a, b in rule.partners(row)), default=0))


def _row(axes: Axes, rule: Rule, rows: Sequences, masked: np.ndarray, index: int, arc: float, depth: bool, cell: float):
    tokens, hidden, sure = rows.tokens[index], masked[index], rows.determined[index]
    length = len(tokens)
    texts, palette = glyphs(rule.vocab), colours(rule.vocab)
    pad = tokens == rule.vocab.pad
    longest = max(len(texts[token]) for token in tokens)
    for t, token in enumerate(tokens):
        fill = (1, 1, 1) if pad[t] else tuple(1 - (1 - palette[token]) * (0.75 if rows.scored[index, t] else 0.35))
        axes.add_patch(Rectangle((t, 0), 1, 1, facecolor=fill, edgecolor="white", linewidth=0.5))
        if cell * 72 > 6:
            axes.text(
                t + 0.5,
                0.47,
                texts[token],
                ha="center",
                va="center",
                color="#999999" if pad[t] else "black",
                fontsize=min(10.0, cell * 72 * 0.95 / max(longest, 1.6)),
            )
    for t in np.flatnonzero(hidden).tolist():
        axes.add_patch(
            Rectangle(
                (t + 0.07, 0.07),
                0.86,
                0.86,
                fill=False,
                linewidth=1.6,
                edgecolor=_HIDDEN if sure[t] else _OPEN,
                zorder=3,
            )
        )
    pairs = rule.partners(tokens)
    widest = max((b - a for a, b in pairs), default=1)
    for a, b in pairs:
        axes.add_patch(
            Arc(
                ((a + b + 1) / 2, 1.05),
                b - a,
                2 * arc * (b - a) / widest,
                theta1=0,
                theta2=180,
                color=palette[tokens[a]],
                linewidth=1.1,
                alpha=0.85,
            )
        )
    low = -0.1
    if depth:
        content = int((~pad).sum())
        opens = np.array([rule.vocab.names[token].startswith("(") for token in tokens[:content]])
        heights = np.concatenate([[0], np.cumsum(np.where(opens, 1, -1))])
        scale = 2.4 / max(int(heights.max(initial=0)), 1)
        axes.fill_between(np.arange(content + 1), -0.5 - heights * scale, -0.5, color="#b0bec5", linewidth=0)
        axes.text(content + 0.2, -0.5, f"depth, up to {heights.max()}", fontsize=7, va="top", color="#607d8b")
        low = -3.1
    for sep in np.flatnonzero(tokens == rule.vocab.sep) if rule.vocab.sep is not None else ():
        axes.plot([sep + 0.5] * 2, [1.0, 1.0 + arc], color="#bbbbbb", linewidth=0.8, linestyle=":", zorder=0)
    axes.set(xlim=(-0.3, length + (2.6 if depth else 0.3)), ylim=(low, 1.3 + arc))
    axes.axis("off")


def _automata(rule: Eca, rows: Sequences, masked: np.ndarray, content: int) -> Figure:
    """The space-time diagram of each sequence's first `content` tokens; below it the same, hidden cells in colour."""
    count, row = len(rows.tokens), rule.row_tokens(content)
    states, shown, used = content // row, row * rule.block, slice(0, content // row * row)
    side = min(3.6, max(1.6, 0.12 * shown))
    figure = new_figure(figsize=(side * count * 1.05 + 0.3, 2.1 * side * states / shown + 0.8), layout="constrained")
    panels = figure.subplots(2, count, squeeze=False)
    for index, (above, below) in enumerate(panels.T):
        bits = (rows.tokens[index, used, None] - 2 >> np.arange(rule.block)[::-1] & 1).reshape(states, shown)
        image = np.where(bits[..., None] == 1, 0.15, 0.97) * np.ones(3)
        above.imshow(image, interpolation="nearest")
        for sure, tint in ((True, _HIDDEN_CELL), (False, _OPEN)):
            where = (masked[index] & (rows.determined[index] == sure))[used].reshape(states, row)
            cells = np.repeat(where, rule.block, axis=1)
            image[cells] = 0.2 * image[cells] + 0.8 * np.array(to_rgb(tint))
        below.imshow(image, interpolation="nearest")
        for axes in (above, below):
            axes.set(xticks=np.arange(rule.block, shown, rule.block) - 0.5 if rule.block > 1 else [], yticks=[])
            axes.grid(axis="x", color="#9e9e9e", linewidth=0.6)
            axes.tick_params(length=0, labelbottom=False)
    return figure
