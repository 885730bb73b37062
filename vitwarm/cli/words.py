"""The command-line language: `key=value` words and a few flags, read into a frozen dataclass that declares them.

    @dataclass(frozen=True, kw_only=True)
    class Options:
        '''What the subcommand does, in one line. Further lines stand in its --help.'''

        export: str = option("export folder of a run", form="RUN/export")
        batch: int = option("images a device takes at once", 256, within="[1, inf)")
        dry_run: bool = flag("only print what there is to do")
        arms: dict[str, str] = rest("ARM=RUNS_GLOB", "finished runs of an arm")

Values are converted by type: `int`, `float`, `bool`, `str`, `Path`, `Literal`, and tuples of `int` (0,1,2 or 0-9) or
`str` (with commas between). Whatever cannot be used is refused in one line; `usage` is the help, from the same
declaration.
"""

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from vitwarm.errors import UserError
from vitwarm.reading import control_character

T = TypeVar("T")
_WIDTH = 100  # columns of a help text
_MOST_NUMBERS = 10_000  # that a span may stand for


@dataclass(frozen=True)
class Word:
    """How a field is written on the command line.

    Attributes:
        kind: `option` is NAME=VALUE, `flag` is --NAME, `place` is a word by its position, `rest` is whatever other
            words there are, as a dict, `typed` is all words but the flags.
        help: its line in the help.
        form: placeholder of the value in the help.
        within: interval that a number, or each of several, must lie in, such as `[1, inf)`.
        suffix: what the name of a file ends in.
        bare: value of a flag that is given without one.
        required: of `rest`: there must be such a word.
        prefix: of `rest`: only the words that begin with it; it is not part of the key.
        last: of `rest`: the key ends at the last `=` of a word, not at the first.
        empty: of `rest`: a value may be empty.
        explain: of `rest`: more text for the help.
    """

    kind: Literal["option", "flag", "place", "rest", "typed"]
    help: str = ""
    form: str | None = None
    within: str | None = None
    suffix: str | None = None
    bare: str | None = None
    required: bool = False
    prefix: str = ""
    last: bool = False
    empty: bool = False
    explain: Callable[[], str] | None = None


def option(
    help: str, default: Any = MISSING, *, form: str | None = None, within: str | None = None, suffix: str | None = None
) -> Any:
    """A field written NAME=VALUE; required without a default."""
    return field(default=default, metadata={"word": Word("option", help, form, within, suffix)})


def flag(help: str, *, form: str | None = None, bare: str | None = None, suffix: str | None = None) -> Any:
    """A field written --NAME, or with a `form` --NAME VALUE; False or None where it is not given."""
    word = Word("flag", help, form, suffix=suffix, bare=bare)
    return field(default=False if form is None else None, metadata={"word": word})


def place(help: str, default: Any = MISSING, *, form: str | None = None, suffix: str | None = None) -> Any:
    """A field that is a word by its position, in order of declaration."""
    return field(default=default, metadata={"word": Word("place", help, form, suffix=suffix)})


def rest(
    form: str,
    help: str,
    *,
    required: bool = False,
    prefix: str = "",
    last: bool = False,
    empty: bool = False,
    explain: Callable[[], str] | None = None,
) -> Any:
    """A `dict[str, str]` of the words that are not an option; see `Word`."""
    word = Word("rest", help, form, required=required, prefix=prefix, last=last, empty=empty, explain=explain)
    return field(default_factory=dict, metadata={"word": word})


def typed() -> Any:
    """A `tuple[str, ...]` of all words but the flags, as they were written."""
    return field(default=(), metadata={"word": Word("typed")})


# Reading


def parse(declared: type[T], words: Sequence[str], program: str) -> T:
    """Read a command line.

    Args:
        declared: the dataclass; each of its fields is made by one of the functions above.
        words: what follows the name of the program and of the subcommand.
        program: what to name in `see ... --help`.

    Raises:
        UserError: a word that is unknown, malformed, missing, out of bounds, or given twice with different values.
    """
    table, hints = {f.name: f for f in fields(declared)}, get_type_hints(declared)  # type: ignore[arg-type]
    given: dict[tuple[str, str], str] = {}
    plain: list[str] = []
    for name, key, text in _assigned(table, hints, words, program, plain):
        shown = f"{_word(table[name]).prefix}{key}" if key else _title(table[name])
        before = given.setdefault((name, key), text)
        if before != text:
            why = f"{shown} is given twice, {before!r} and {text!r}; give it once, and quote a value with braces"
            raise UserError(f"{why}: the shell makes several words of {shown.removeprefix('--')}=a{{b,c}}")
    values: dict[str, Any] = {}
    for (name, key), text in given.items():
        word = _word(table[name])
        if word.kind == "rest":
            values.setdefault(name, {})[key] = text
        else:
            values[name] = True if word.kind == "flag" and word.form is None else _read(table[name], hints[name], text)
    values |= {name: tuple(plain) for name, f in table.items() if _word(f).kind == "typed"}
    if missing := [_form(f, hints[n]) for n, f in table.items() if n not in values and _is_required(f)]:
        raise UserError(f"no {' and no '.join(missing)}; see {program} --help")
    return declared(**values)


def _assigned(
    table: dict[str, Field[Any]], hints: dict[str, Any], words: Sequence[str], program: str, plain: list[str]
) -> Iterator[tuple[str, str, str]]:
    """(field, key within a rest, text) of each word; `plain` gets the words that belong to no flag."""
    by_kind: dict[str, list[str]] = {}
    for name, f in table.items():
        by_kind.setdefault(_word(f).kind, []).append(name)
    flags = {_title(table[name]): name for name in by_kind.get("flag", [])}
    places, rests = list(by_kind.get("place", [])), by_kind.get("rest", [])
    coming = list(words)
    while coming:
        given = coming.pop(0)
        if given.startswith("-"):
            if given not in flags:
                raise UserError(f"no flag {given}{_near(given, flags)}; see {program} --help")
            word = _word(table[flags[given]])
            own = bool(coming) and not coming[0].startswith("-") and (word.bare is None or "=" not in coming[0])
            if word.form is not None and not own and word.bare is None:
                raise UserError(f"{given} needs a value: {given} {word.form}")
            text = "" if word.form is None else coming.pop(0) if own else word.bare or ""
            yield flags[given], "", text
            continue
        plain.append(given)
        key, equals, text = given.partition("=")
        if places:
            yield places.pop(0), "", given
        elif not equals or not key:
            what = "one word too many" if "place" in by_kind else "write NAME=VALUE"
            raise UserError(f"cannot use {given!r}: {what}; see {program} --help")
        elif key in by_kind.get("option", []):
            yield key, "", text
        else:
            found = next((n for n in rests if key.startswith(_word(table[n]).prefix)), None)
            if found is None:
                known = by_kind.get("option", [])
                raise UserError(f"no option {key}={_near(key, known)}; known: {', '.join(f'{k}=' for k in known)}")
            word = _word(table[found])
            if word.last:
                key, _, text = given.rpartition("=")
            key = key.removeprefix(word.prefix)
            if not key or not (text or word.empty):
                raise UserError(f"cannot use {given!r}: write {word.form}")
            yield found, key, text


_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a path",
    str: "a text",
    tuple[int, ...]: "whole numbers, each once, such as 0,1,2 or 0-9",
    tuple[str, ...]: "words, each once, with commas between them",
}


def _read(declared: Field[Any], hint: Any, text: str) -> Any:
    """The value of a text, by the field's type and bounds."""
    word, title, kind = _word(declared), _title(declared), _kind(hint)
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise UserError(f"{title} is one of {', '.join(get_args(kind))}, not {text!r}{_near(text, get_args(kind))}")
        return text
    try:
        value = _converted(kind, text)
    except (ValueError, KeyError, RuntimeError):  # RuntimeError: a home folder that is not there
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        raise UserError(f"{title} is {_KINDS[kind]}, not {shown!r}") from None
    if word.suffix is not None and value.suffix != word.suffix:
        raise UserError(f"{title} is a file whose name ends in {word.suffix}, not {text!r}")
    if word.within is not None:
        from vitwarm.checks import inside

        for number in value if isinstance(value, tuple) else (value,):
            if not inside(number, word.within):
                raise UserError(f"{title} must lie in {word.within}, not be {number}")
    return value


def _converted(kind: Any, text: str) -> Any:
    if kind is bool:
        return {"true": True, "false": False}[text]
    if kind is int:
        if not re.fullmatch(r"[+-]?[0-9]{1,40}", text):
            raise ValueError
        return int(text)
    if kind is Path:
        if not text or control_character(text):
            raise ValueError
        return Path(text).expanduser()
    if get_origin(kind) is tuple:
        parts = [part.strip() for part in text.split(",")]
        values = [v for part in parts for v in _span(part)] if get_args(kind)[0] is int else parts
        if len(set(values)) < len(values) or "" in values:
            raise ValueError
        return tuple(values)
    return kind(text)


def _span(text: str) -> Iterable[int]:
    """0-9 as the numbers from 0 to 9, 7 as 7 alone."""
    found = re.fullmatch(r"([0-9]{1,40})(?:-([0-9]{1,40}))?", text)
    if found is None or not 0 <= int(found[2] or found[1]) - int(found[1]) < _MOST_NUMBERS:
        raise ValueError
    return range(int(found[1]), int(found[2] or found[1]) + 1)


# Describing


def purpose(declared: type) -> str:
    """The first line of a declaration's docstring."""
    return (declared.__doc__ or "").strip().partition("\n")[0].removesuffix(".")


def usage(declared: type, program: str) -> str:
    """The help of a declaration: how to call it, what it does, each word with its type, default and bounds."""
    hints = get_type_hints(declared)
    shown = [f for f in fields(declared) if _word(f).kind != "typed"]
    call, rows = [], []
    for f in sorted(shown, key=lambda f: (not _is_required(f), _word(f).kind == "flag", _word(f).kind == "rest")):
        word, form = _word(f), _form(f, hints[f.name])
        many = " ..." if word.kind == "rest" else ""
        call.append(f"{form}{many}" if _is_required(f) else f"[{form}{many}]")
        rows.append((form, word.help + _note(f)))
    lines = textwrap.wrap(
        f"usage: {program} {' '.join(part.replace(' ', chr(0)) for part in call)}",
        _WIDTH, subsequent_indent=" " * 8, break_on_hyphens=False, break_long_words=False,
    )  # fmt: skip
    text = textwrap.dedent("    " + (declared.__doc__ or "")).strip()
    more = [word.explain() for f in shown if (word := _word(f)).explain is not None]
    return "\n\n".join(["\n".join(lines).replace(chr(0), " "), text, listing(rows, indent=2), *more]).rstrip()


def listing(rows: Iterable[tuple[str, str]], indent: int = 0) -> str:
    """Names and descriptions in two columns; indented ones are wrapped."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    lines = []
    for name, what in rows:
        first = f"{' ' * indent}{name:{width}}  "
        wrapped = textwrap.wrap(what, max(40, _WIDTH - len(first)), break_on_hyphens=False) if indent else [what]
        lines += [first + (wrapped[0] if wrapped else ""), *(" " * len(first) + line for line in wrapped[1:])]
    return "\n".join(line.rstrip() for line in lines)


def _word(declared: Field[Any]) -> Word:
    return declared.metadata["word"]  # type: ignore[no-any-return]


def _title(declared: Field[Any]) -> str:
    kind = _word(declared).kind
    return f"--{declared.name.replace('_', '-')}" if kind == "flag" else declared.name


def _kind(hint: Any) -> Any:
    """The type without None."""
    return next(h for h in get_args(hint) if h is not NoneType) if NoneType in get_args(hint) else hint


def _is_required(declared: Field[Any]) -> bool:
    return _word(declared).required or (declared.default is MISSING and declared.default_factory is MISSING)


def _form(declared: Field[Any], hint: Any) -> str:
    """How a field is written."""
    word, title, kind = _word(declared), _title(declared), _kind(hint)
    choices = "|".join(get_args(kind)) if get_origin(kind) is Literal else None
    form = word.form or choices or {int: "N", float: "X", bool: "true|false", Path: "PATH"}.get(kind, "TEXT")
    if word.kind == "flag":
        value = "" if word.form is None else f" {form}" if word.bare is None else f" [{form}]"
        return title + value
    return f"{title}={form}" if word.kind == "option" else form


def _note(declared: Field[Any]) -> str:
    """Default and bounds, in brackets."""
    word, default, notes = _word(declared), declared.default, []
    if word.kind == "option" and default not in (MISSING, None, (), ""):
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        notes.append(f"default {shown.lower() if isinstance(default, bool) else shown}")
    if word.within is not None:
        notes.append(f"in {word.within}")
    return f" ({', '.join(notes)})" if notes else ""


def _near(word: str, known: Iterable[str]) -> str:
    from vitwarm.checks import nearest

    return nearest(word, known)
