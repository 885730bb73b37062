"""Sequences of a rule as text for the terminal, in colour."""

import colorsys
import re

import numpy as np

from vitwarm.procedural.composite import Curriculum
from vitwarm.procedural.eca import Eca
from vitwarm.procedural.rule import Rule, Sequences, Vocab

__all__ = ["colours", "glyphs", "natural_length", "render"]

_PAIRS = ("()", "[]", "{}", "<>")
_CELLS = {ord("0"): ".", ord("1"): "#"}
_SPECIAL = {"PAD": "·", "MASK": "?", "SEP": "|", "END": ".", "POP": "↑"}


def glyphs(vocab: Vocab) -> list[str]:
    """A short text for each token id."""
    types = sum(bool(re.fullmatch(r"\(\d+", name)) for name in vocab.names)
    texts = []
    for name in vocab.names:
        if name in _SPECIAL:
            texts.append(_SPECIAL[name])
        elif re.fullmatch(r"TASK\d+", name):
            texts.append("T" + name[4:])
        elif re.fullmatch(r"[()]\d+", name):
            pair = _PAIRS[int(name[1:])] if types <= len(_PAIRS) else None
            texts.append(pair["()".index(name[0])] if pair else name[1:] + ")" if name[0] == ")" else name)
        elif re.fullmatch(r"b[01]+", name):
            texts.append(name[1:].translate(_CELLS))
        else:
            texts.append(name)
    return texts


def colours(vocab: Vocab) -> np.ndarray:
    """(size, 3) RGB in 0..1 for each token id: a hue for each bracket type or content symbol, grey for the specials."""
    families: dict[str, list[int]] = {}
    for index, name in enumerate(vocab.names):
        kind = "special" if name in _SPECIAL else name[0] if name[0] in "()bT" else "symbol"
        families.setdefault(kind, []).append(index)
    table = np.full((vocab.size, 3), 0.55)
    for kind, members in families.items():
        if kind != "special":
            for place, index in enumerate(members):
                table[index] = colorsys.hls_to_rgb(0.9 * place / len(members) + 0.02, 0.5, 0.62)
    return table


def content_of(rule: Rule, length: int) -> tuple[Rule, int]:
    """The rule and `length`, or the inner rule of a curriculum and the tokens that it fills of `length`."""
    return (rule.rule, rule.content_length(length)) if isinstance(rule, Curriculum) else (rule, length)


def natural_length(rule: Rule) -> int:
    """A length that fills some lines of a terminal."""
    return rule.length_of(32) if isinstance(rule, Eca) else 48 + getattr(rule, "task_prefix", False)


def render(rule: Rule, rows: Sequences, masked: np.ndarray, width: int, colour: bool) -> str:
    """The sequences as text, in lines of at most `width` characters: tokens over marks.

    Of automata a line is a state; the diagram is followed, beside it or below, by the same one with the marks in the
    place of what is hidden.
    """
    texts, palette = glyphs(rule.vocab), (colours(rule.vocab) * 255).astype(int)
    cell = max(len(texts[token]) for token in np.unique(rows.tokens)) if rows.tokens.size else 1
    cell += cell > 1
    marks = np.where(masked, np.where(rows.determined, "?", "~"), " ")
    per_line = max(1, width // cell)
    rule, content = content_of(rule, rows.tokens.shape[1])
    if diagram := isinstance(rule, Eca):
        per_line = rule.row_tokens(content)
    lines = []
    for index, tokens in enumerate(rows.tokens):
        lines.append(
            f"sequence {index}: {masked[index].sum()} hidden of {rows.scored[index].sum()} eligible tokens, "
            f"{(masked[index] & rows.determined[index]).sum()} of them determined"
        )
        words = [texts[token].ljust(cell) for token in tokens]
        left = [  # the diagram with marks in it, since lines of marks would break it up
            word if mark == " " else (mark * len(word.rstrip())).ljust(cell)
            for word, mark in zip(words, marks[index], strict=True)
        ]
        if colour:
            hues = palette[tokens]
            words = [_paint(*one) for one in zip(words, hues, masked[index] & (not diagram), strict=True)]
            left = [_paint(*one) for one in zip(left, hues, masked[index], strict=True)]
        parts = [slice(start, start + per_line) for start in range(0, len(tokens), per_line)]
        if diagram and 2 * cell * per_line + 3 <= width:
            room = " " * cell * (-len(tokens) % per_line)  # beside a last line of padding
            lines += [f"{''.join(words[part])}   {''.join(left[part])}".rstrip() for part in parts[:-1]]
            lines.append(f"{''.join(words[parts[-1]])}{room}   {''.join(left[parts[-1]])}".rstrip())
        elif diagram:
            lines += ["".join(row[part]).rstrip() for row in (words, left) for part in parts]
        else:
            for part in parts:
                lines.append("".join(words[part]).rstrip())
                if masked[index, part].any():
                    lines.append("".join(mark.ljust(cell) for mark in marks[index, part]).rstrip())
    return "\n".join(lines)


def _paint(word: str, rgb: np.ndarray, hidden: bool) -> str:
    red, green, blue = rgb
    return f"\x1b[{'7;' if hidden else ''}38;2;{red};{green};{blue}m{word}\x1b[0m"
