"""Writes a page into a folder: as HTML and as Markdown, with its figures and the numbers behind it."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitwarm.budget.page import Block, inline, to_html, to_markdown
from vitwarm.budget.style import INK
from vitwarm.files import write_bytes
from vitwarm.plotting import load_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_page(
    folder: Path,
    title: str,
    blocks: Callable[[dict[str, str]], Sequence[Block]],
    figures: Mapping[str, "Figure"],
    numbers: Mapping[str, str],
) -> list[Path]:
    """Write report.html, report.md, each figure as SVG and PNG, and the files of numbers; each whole or not at all.

    Args:
        folder: made if missing; other files in it are left alone.
        title: of the page.
        blocks: name of a figure -> SVG for the inside of a page, to the blocks of the page.
        figures: name -> figure.
        numbers: file name -> text.

    Returns:
        The files, report.html first.

    Raises:
        UserError: matplotlib is missing.
    """
    files: dict[str, bytes] = {}
    drawn: dict[str, str] = {}
    for name, figure in figures.items():
        clear, files[f"{name}.svg"], files[f"{name}.png"] = _rendered(figure)
        drawn[name] = inline(clear.decode(), name, INK)
    page = blocks(drawn)
    texts = {"report.md": to_markdown(title, page), **numbers, "report.html": to_html(title, page)}
    files |= {name: text.encode() for name, text in texts.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():  # the page last: what it links to is there
        write_bytes(folder / name, content)
    return [folder / name for name in reversed(files)]


def _rendered(figure: "Figure") -> list[bytes]:
    """(SVG without a background, SVG on white, PNG on white) of a figure."""
    found = []
    with load_matplotlib().rc_context({"svg.fonttype": "none", "svg.hashsalt": "vitwarm"}):
        for kind, background in (("svg", "none"), ("svg", "white"), ("png", "white")):
            out = io.BytesIO()
            metadata = {"Date": None} if kind == "svg" else {}
            figure.savefig(out, format=kind, facecolor=background, dpi=160, metadata=metadata)
            found.append(out.getvalue())
    return found
