"""A page as a list of blocks, rendered as Markdown and as a self-contained HTML file."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape as _escape
from urllib.parse import quote


@dataclass(frozen=True)
class Text:
    """A paragraph; `lead` is the answer, `small` the setting."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Heading:
    """A section."""

    text: str


@dataclass(frozen=True)
class Points:
    """An unordered list; as a `warning` it stands out."""

    items: Sequence[str]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text below heads; `names` columns at the left are words, the rest numbers."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1


@dataclass(frozen=True)
class Figure:
    """A figure: HTML contains `svg`, Markdown links to `file`."""

    svg: str
    file: str
    caption: str


@dataclass(frozen=True)
class Code:
    """Lines as they are typed."""

    text: str


@dataclass(frozen=True)
class Folded:
    """Blocks that a reader opens when needed."""

    title: str
    blocks: list = field(default_factory=list)


Block = Text | Heading | Points | Table | Figure | Code | Folded


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """The page as Markdown."""
    return "\n\n".join([f"# {title}", *(_markdown(b) for b in blocks)]) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Text(text):
            return text
        case Heading(text):
            return f"## {text}"
        case Points(items):
            return "\n".join(f"- {item}" for item in items)
        case Table(heads, rows, names):
            cells = [[cell.replace("|", "\\|") for cell in row] for row in [heads, *rows]]
            rule = ["---" if i < names else "---:" for i in range(len(heads))]
            return "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], rule, *cells[1:]])
        case Figure(_, file, caption):
            return f"![{caption}]({quote(file)})"
        case Code(text):
            return "\n".join(f"    {line}" for line in text.splitlines())
        case Folded(name, inner):
            return "\n\n".join([f"### {name}", *(_markdown(b) for b in inner)])
    raise TypeError(block)


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """The page as one HTML file, without scripts or external files."""
    body = "\n".join(_html(b) for b in blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def escape(text: str, quote: bool = False) -> str:
    """Text for HTML; a number keeps its `%` and its interval on its line."""
    return re.sub(r"(?<=\d) (?=%)|(?<=%) (?=\[)|(?<=\d,) (?=[+-]?\d+(?:\.\d+)?\])", "\u00a0", _escape(text, quote))


def _html(block: Block) -> str:
    match block:
        case Text(text, kind):
            return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Points(items, kind):
            return f'<ul class="{kind}">{"".join(f"<li>{escape(item)}</li>" for item in items)}</ul>'
        case Table(heads, rows, names):
            kinds = ["" if i < names else ' class="n"' for i in range(len(heads))]
            head = "".join(f"<th{k}>{escape(h)}</th>" for h, k in zip(heads, kinds, strict=True))
            lines = ("".join(f"<td{k}>{escape(cell)}</td>" for cell, k in zip(row, kinds, strict=True)) for row in rows)
            body = "\n".join(f"<tr>{line}</tr>" for line in lines)
            table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
            hint = '<p class="hint"><span>wider than the page: scrolls sideways \u2192</span></p>'
            return f'<div class="wide" tabindex="0"><div>{hint}{table}</div></div>'
        case Figure(svg, _, caption):
            label = f'<svg role="img" aria-label="{escape(caption, quote=True)}"'
            return f"<figure>{svg.replace('<svg', label, 1)}<figcaption>{escape(caption)}</figcaption></figure>"
        case Code(text):
            return f"<pre>{escape(text)}</pre>"
        case Folded(name, inner):
            return f"<details><summary>{escape(name)}</summary>\n{chr(10).join(_html(b) for b in inner)}\n</details>"
    raise TypeError(block)


def inline(svg: str, name: str, ink: str) -> str:
    """An SVG file for use inside a page: its own names, the text's colour for `ink`, as wide as there is room."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    name = re.sub(r"\W+", "-", name)  # blanks would end a url in CSS
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r'^(<svg[^>]*?) width="[^"]*"', r"\1", svg)
    svg = re.sub(r'^(<svg[^>]*?) height="[^"]*"', r"\1", svg)
    return svg.replace(ink, "currentColor")


_STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5b6670; --line: #d9dee3; --page: #fbfbf9; --card: #ffffff;
  --mark: #8a5a00; --markbg: #fdf4df; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --soft: #9aa5af; --line: #343c44; --page: #14181c;
  --card: #1b2026; --mark: #f0c068; --markbg: #2a2416; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.05rem; font-weight: 600; color: var(--soft); margin: 0 0 1rem; letter-spacing: .01em; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .7rem; line-height: 1.3; }
p { max-width: 46rem; margin: .6rem 0; overflow-wrap: anywhere; }
p.lead { font-size: 1.45rem; line-height: 1.4; font-weight: 600; max-width: 54rem; margin: .4rem 0 1rem;
  text-wrap: pretty; }
p.small { color: var(--soft); font-size: .92rem; }
ul { padding-left: 1.2rem; max-width: 54rem; } li { margin: .3rem 0; overflow-wrap: anywhere; }
ul.warning { list-style: none; margin: 1.4rem 0; padding: .7rem 1.1rem; background: var(--markbg); border-radius: .4rem;
  border-left: 4px solid var(--mark); font-size: .95rem; }
figure, .wide, pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
figure { margin: 1.2rem 0; padding: 1rem; }
figure svg { display: block; width: 100%; height: auto; color: var(--ink); max-width: 38rem; margin: 0 auto; }
figcaption { color: var(--soft); font-size: .88rem; line-height: 1.45; margin-top: .6rem; max-width: 52rem; }
.wide { overflow-x: auto; margin: .8rem 0; container-type: inline-size; }
.wide > div { width: min-content; min-width: 100%; }
/* as high as its padding, which is none unless the table (100%) is wider than its frame (100cqi) */
.hint { position: sticky; left: 0; width: 100cqi; max-width: none; height: 0; margin: 0; overflow: hidden;
  color: var(--mark); background: var(--markbg); font-size: .82rem;
  padding: clamp(0px, (100% - 100cqi) * 999, 1.8rem) 0 0; }
.hint span { position: absolute; top: .25rem; left: .75rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .75rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; line-height: 1.3; }
tbody tr:last-child td { border-bottom: 0; } td { white-space: nowrap; } td:first-child { font-weight: 600; }
td:first-child, th:first-child { position: sticky; left: 0; background: var(--card); }
td:first-child { white-space: normal; min-width: 6rem; }
.n { text-align: right; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .8rem 1rem;
  font: .84rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
details { margin: .8rem 0; } summary { cursor: pointer; font-weight: 600; padding: .3rem 0; }
:focus-visible { outline: 2px solid var(--mark); outline-offset: 2px; }
@media (max-width: 40rem) { main { padding: 1.4rem .9rem 3rem; } p.lead { font-size: 1.18rem; }
  figure { padding: .5rem .3rem; } figcaption { padding: 0 .3rem; } th, td { padding: .4rem .55rem; } }
@media print { body { background: #fff; } figure, .wide { break-inside: avoid; } }
"""
