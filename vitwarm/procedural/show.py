"""Rows of a rule on the terminal, in colour, and as a picture: `vitwarm-show rule=dyck k=4 length=48 --png FILE`."""

import colorsys
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np

from vitwarm.procedural.composite import Curriculum
from vitwarm.procedural.eca import Eca
from vitwarm.procedural.registry import list_rules, make_rule
from vitwarm.procedural.rule import Rule, Sequences, Vocab
from vitwarm.procedural.stream import RuleStream

__all__ = ["colours", "glyphs", "main", "render"]

USAGE = """usage: vitwarm-show rule=NAME [PARAMETER=VALUE ...] [length=N] [count=3] [seed=0] [mask=0.5] [--png FILE]

Shows rows of a rule: hidden positions are marked ? where they are determined and ~ where they are not.
A rule of rules is written as JSON: rule='{"name": "shuffled", "rule": {"name": "dyck", "k": 4}}'.
Rules: """

_PAIRS = ("()", "[]", "{}", "<>")
_CELLS = {ord("0"): ".", ord("1"): "#"}
_SPECIAL = {"PAD": "·", "MASK": "?", "SEP": "|", "END": ".", "POP": "↑"}


def glyphs(vocab: Vocab) -> list[str]:
    """A short text for each token id."""
    types = sum(name.startswith("(") for name in vocab.names)
    texts = []
    for name in vocab.names:
        if name in _SPECIAL:
            texts.append(_SPECIAL[name])
        elif name.startswith("TASK"):
            texts.append("T" + name[4:])
        elif name[0] in "()":
            pair = _PAIRS[int(name[1:])] if types <= len(_PAIRS) else None
            texts.append(pair["()".index(name[0])] if pair else name[1:] + ")" if name[0] == ")" else name)
        else:
            texts.append(name if name.isdigit() else name[1:].translate(_CELLS))
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


def learnt(rule: Rule) -> Rule:
    """The rule itself, or the one that a curriculum is about."""
    return rule.rule if isinstance(rule, Curriculum) else rule


def render(rule: Rule, rows: Sequences, masked: np.ndarray, width: int, colour: bool) -> str:
    """The rows as text: tokens over marks, in lines of at most `width` characters; of automata, a state a line."""
    texts, palette = glyphs(rule.vocab), (colours(rule.vocab) * 255).astype(int)
    cell = max(len(texts[token]) for token in np.unique(rows.tokens)) if rows.tokens.size else 1
    cell += cell > 1
    marks = np.where(masked, np.where(rows.determined, "?", "~"), " ")
    per_line = max(1, width // cell)
    rule = learnt(rule)
    if isinstance(rule, Eca):
        per_line = rule.row_tokens(rows.tokens.shape[1])
    lines = []
    for index, tokens in enumerate(rows.tokens):
        lines.append(
            f"row {index}: {masked[index].sum()} hidden of {rows.scored[index].sum()} that may be asked for, "
            f"{(masked[index] & rows.determined[index]).sum()} of them determined"
        )
        for start in range(0, len(tokens), per_line):
            part = slice(start, start + per_line)
            words = [texts[token].ljust(cell) for token in tokens[part]]
            if colour:
                words = [
                    _paint(word, palette[token], hidden)
                    for word, token, hidden in zip(words, tokens[part], masked[index, part], strict=True)
                ]
            lines.append("".join(words).rstrip())
            if masked[index, part].any() and not isinstance(rule, Eca):  # marks would tear the picture apart
                lines.append("".join(mark.ljust(cell) for mark in marks[index, part]).rstrip())
    return "\n".join(lines)


def _paint(word: str, rgb: np.ndarray, hidden: bool) -> str:
    red, green, blue = rgb
    return f"\x1b[{'7;' if hidden else ''}38;2;{red};{green};{blue}m{word}\x1b[0m"


def main(argv: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0, or 2 after one line on a mistake in the arguments."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE + ", ".join(list_rules()))
        return 0 if arguments else 2
    try:
        rule, rows, masked, png = _prepare(list(arguments))
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(render(rule, rows, masked, shutil.get_terminal_size((120, 24)).columns, colour))
        if png is not None:
            from vitwarm.procedural.draw import draw  # here, because only a picture needs matplotlib

            draw(rule, rows, masked, png)
            print(f"picture: {png}")
    except BrokenPipeError:  # as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or closing it would complain again
        return 141
    except (ValueError, OSError, MemoryError) as error:
        print(f"vitwarm-show: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        print("vitwarm-show: error: pictures need matplotlib: pip install 'vitwarm[plot]'", file=sys.stderr)
        return 2
    return 0


def _prepare(arguments: list[str]) -> tuple[Rule, Sequences, np.ndarray, Path | None]:
    png = None
    if "--png" in arguments:
        at = arguments.index("--png")
        if at + 1 == len(arguments):
            raise ValueError("--png needs the name of a file")
        png = Path(arguments[at + 1])
        del arguments[at : at + 2]
        if png.suffix != ".png" or not png.parent.is_dir():
            raise ValueError(f"--png needs a name that ends in .png, in a folder that exists, got {png}")
    given = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            raise ValueError(f"arguments are written NAME=VALUE, got {argument!r}")
        if name in given or name == "name":
            raise ValueError(f"{argument!r} says again what {'rule=' if name == 'name' else name + '='} says")
        given[name] = _value(value)
    if "rule" not in given:
        raise ValueError(f"rule=NAME is missing; rules: {', '.join(list_rules())}")
    chosen = given.pop("rule")
    length, count, seed = _whole(given, "length", None), _whole(given, "count", 3), _whole(given, "seed", 0)
    mask_prob = given.pop("mask", 0.5)
    if not isinstance(mask_prob, (int, float)) or not 0 <= mask_prob <= 1:
        raise ValueError(f"mask must be a number from 0 to 1, got {mask_prob!r}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    spec = chosen if isinstance(chosen, dict) else {"name": str(chosen)}
    if not isinstance(spec.get("name"), str):
        raise ValueError(f'a rule needs a name, such as {{"name": "dyck"}}, got {chosen}')
    rule = make_rule(**spec | given)
    if length is None:
        length = rule.length_of(32) if isinstance(rule, Eca) else 48 + getattr(rule, "task_prefix", False)
    stream = RuleStream(rule, seed, "train", length)
    return rule, stream.rows(0, count), stream.masked_rows(0, count, mask_prob).masked, png


def _value(text: str):
    try:
        return json.loads({"none": "null", "None": "null", "True": "true", "False": "false"}.get(text, text))
    except json.JSONDecodeError:
        return text


def _whole(given: dict, name: str, default: int | None) -> int | None:
    value = given.pop(name, default)
    if (value is not None or default is not None) and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
