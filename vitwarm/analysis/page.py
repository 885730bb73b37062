"""An inspection as a table and as a page of small multiples."""

from pathlib import Path

import numpy as np

from vitwarm.analysis.inspection import MATRICES, Inspection
from vitwarm.plotting import load_matplotlib, new_figure, save_figure

GREY = "0.55"


def table(found: Inspection) -> str:
    """One line a block, in Markdown; below it what must be known of a core's."""
    lines = [
        "| block | entropy of the heads, lowest to highest | " + " | ".join(f"{n}: rms, rank" for n in MATRICES) + " |"
    ]
    lines.append("|---" * (2 + len(MATRICES)) + "|")
    ranks = {name: found.effective_rank(name) for name in MATRICES}
    for block, heads in enumerate(np.sort(found.entropy, axis=1)):
        cells = [f"{found.rms[n][block]:.3f}, {ranks[n][block]:.0f}" for n in MATRICES]
        lines.append(f"| {block} | {' '.join(f'{h:.2f}' for h in heads)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(["", found.note] if found.note else [])])


def plot(found: dict[str, Inspection], path: Path, about: str) -> None:
    """Draw entropy of heads, sizes, ranks and gains by block, then the spectrum of each matrix, a row for each trunk.

    Args:
        found: name -> inspection; the first is looked at, a second one stands in grey beside it.
        path: PNG to write.
        about: one line on the sequences that were read.

    Raises:
        UserError: matplotlib is missing.
    """
    viridis = load_matplotlib().colormaps["viridis"]
    figure = new_figure(figsize=(15, 3.6 + 2.7 * len(found)), layout="constrained")
    grid = figure.add_gridspec(1 + len(found), 12, height_ratios=[1.25, *[1] * len(found)])
    ax = figure.add_subplot(grid[0, :3])
    for i, one in enumerate(found.values()):
        depth, heads = one.entropy.shape
        x = np.repeat(np.arange(depth), heads) + (0.12 * (2 * i - 1) if len(found) > 1 else 0)
        look = {"color": "C0", "alpha": 0.85} if i == 0 else {"facecolors": "none", "edgecolors": GREY}
        ax.scatter(x, one.entropy.ravel(), s=28, clip_on=False, **look)
    ax.set(title="attention entropy of each head", ylabel="share of the highest possible", ylim=(0, 1))
    for column, (title, value, bottom) in enumerate(
        (
            ("size of the entries (RMS)", lambda one, n: one.rms[n], 0),
            ("effective rank of the matrices", lambda one, n: one.effective_rank(n), 0),
        ),
        start=1,
    ):
        ax = figure.add_subplot(grid[0, 3 * column : 3 * column + 3])
        for i, one in enumerate(found.values()):
            for colour, name in enumerate(MATRICES):
                line = {"color": f"C{colour}", "marker": "."} if i == 0 else {"color": f"C{colour}", "ls": ":", "lw": 1}
                ax.plot(value(one, name), label=name if i == 0 else None, **line)
        ax.set(title=title)
        ax.set_ylim(bottom=bottom)
        if column == 1:
            ax.legend(frameon=False, fontsize=8, ncols=2, loc="best")
    ax = figure.add_subplot(grid[0, 9:])
    for i, one in enumerate(found.values()):
        for colour, (name, gains) in enumerate(one.gains.items()):
            line = {"color": f"C{colour}", "marker": "."} if i == 0 else {"color": f"C{colour}", "ls": ":", "lw": 1}
            ax.plot(gains, label=name if i == 0 else None, **line)
    ax.set(title="mean gain of the norms")
    ax.legend(frameon=False, fontsize=8)
    for ax in figure.axes:
        ax.set_xlabel("block")
        ax.locator_params(axis="x", integer=True)
    tops = {n: max(s[0] for one in found.values() for s in one.spectrum[n]) for n in MATRICES}
    for row, (name, one) in enumerate(found.items(), start=1):
        for column, matrix in enumerate(MATRICES):
            ax = figure.add_subplot(grid[row, 2 * column : 2 * column + 2])
            for block, values in enumerate(one.spectrum[matrix]):
                shade = viridis(0.9 * block / max(1, len(one.spectrum[matrix]) - 1))
                ax.plot(np.arange(1, len(values) + 1), values, color=shade, lw=1.1)
            ax.set(title=matrix, ylim=(0, 1.05 * tops[matrix]))
            ax.set_xlabel("rank of the singular value")
            if column == 0:
                ax.set_ylabel(name, fontsize=9)
    for ax in figure.axes:
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
        ax.title.set_fontsize(10)
    first, *others = found
    dotted = f"Solid: {first}. Grey and dotted: {others[0]}. " if others else f"{first}. "
    notes = "".join(f" {note}" for note in dict.fromkeys(one.note for one in found.values()) if note)
    figure.suptitle(f"{dotted}{about}{notes} Spectra below: first block dark, last block light.", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path, dpi=110)
