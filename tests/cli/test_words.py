"""The parser of command lines: what it reads, what it refuses and how, and the help from the same declaration."""

import re
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitwarm.cli.words import flag, option, parse, place, purpose, rest, typed, usage
from vitwarm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Everything:
    """All kinds of words.

    A second paragraph.
    """

    source: Path = option("where from", form="FOLDER")
    number: int = option("a count", 3, within="[1, 9]")
    share: float | None = option("a share", None, within="[0, 1)")
    on: bool = option("a switch", True)
    text: str = option("a text", "")
    way: Literal["up", "down"] = option("a direction", "up")
    seeds: tuple[int, ...] = option("numbers", (), within="[0, 99]")
    names: tuple[str, ...] = option("names", ("a",))
    image: Path | None = option("an image", None, suffix=".png")
    dry_run: bool = flag("do nothing")
    png: Path | None = flag("draw", form="FILE", bare="page.png")
    csv: Path | None = flag("write", form="FILE")
    made: dict[str, str] = rest("made.KEY=X", "what is made", prefix="made.", last=True)
    others: dict[str, str] = rest("KEY=X", "the rest", empty=True)
    words: tuple[str, ...] = typed()


@dataclass(frozen=True, kw_only=True)
class Strict:
    """No word but its own."""

    alpha: int = option("a number", 1)
    beta: int = option("another")


@dataclass(frozen=True, kw_only=True)
class Places:
    """Words by their position."""

    action: Literal["list", "show"] = place("what to do")
    name: str | None = place("of what", None, form="NAME")


def read(*words: str) -> Everything:
    return parse(Everything, ["source=x", *words], "prog")


def test_defaults_stand_where_nothing_is_said():
    found = read()
    assert found.words == ("source=x",)
    for f in fields(Everything):
        if f.name not in ("source", "words"):
            assert getattr(found, f.name) == (f.default if f.default_factory is not dict else {}), f.name


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["number=7"], "number", 7),
        (["share=2.5e-1"], "share", 0.25),
        (["on=false"], "on", False),
        (["text=a=b c"], "text", "a=b c"),
        (["text="], "text", ""),
        (["way=down"], "way", "down"),
        (["seeds=0,3-5,9"], "seeds", (0, 3, 4, 5, 9)),
        (["seeds=7"], "seeds", (7,)),
        (["names=b, c"], "names", ("b", "c")),
        (["image=a/b.png"], "image", Path("a/b.png")),
        (["image=~/b.png"], "image", Path.home() / "b.png"),
        (["--dry-run"], "dry_run", True),
        (["--png"], "png", Path("page.png")),
        (["--png", "text=b"], "png", Path("page.png")),
        (["--png", "--dry-run"], "png", Path("page.png")),
        (["--png", "b.png", "text=b"], "png", Path("b.png")),
        (["--csv", "a=b"], "csv", Path("a=b")),
        (["made.a=b=c=d"], "made", {"a=b=c": "d"}),
        (["made.a=1", "a=1=2", "b="], "others", {"a": "1=2", "b": ""}),
        (["number=7", "number=7"], "number", 7),
    ],
)
def test_values_are_converted_by_type(words, name, value):
    found = getattr(read(*words), name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["number=7.5"], "number is a whole number, not '7.5'"),
        (["number=1_0"], "number is a whole number"),
        (["number="], "number is a whole number"),
        (["number=0"], "number must lie in [1, 9], not be 0"),
        (["share=half"], "share is a number, not 'half'"),
        (["share=1"], "share must lie in [0, 1), not be 1.0"),
        (["share=nan"], "share must lie in"),
        (["on=yes"], "on is true or false, not 'yes'"),
        (["way=dwn"], "way is one of up, down, not 'dwn'; did you mean down?"),
        (["seeds=5-3"], "seeds is whole numbers, each once"),
        (["seeds=1,1"], "seeds is whole numbers, each once"),
        (["seeds=-1"], "seeds is whole numbers"),
        (["seeds=98-100"], "seeds must lie in [0, 99], not be 100"),
        (["names=a,,b"], "names is words"),
        (["image=a.jpg"], "image is a file whose name ends in .png, not 'a.jpg'"),
        (["image=~nobody-at-all/a.png"], "image is a path"),
        (["source="], "source is given twice"),
        (["fast"], "cannot use 'fast': write NAME=VALUE; see prog --help"),
        (["=fast"], "cannot use '=fast'"),
        (["made.=1"], "cannot use 'made.=1': write made.KEY=X"),
        (["made.a="], "cannot use 'made.a=': write made.KEY=X"),
        (["--dry-rum"], "no flag --dry-rum; did you mean --dry-run?; see prog --help"),
        (["--csv"], "--csv needs a value: --csv FILE"),
        (["--csv", "a", "--csv", "b"], "--csv is given twice, 'a' and 'b'"),
        (["other=1", "other=2"], "other is given twice, '1' and '2'"),
        (["made.a=1", "made.a=2"], "made.a is given twice"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(words, says):
    with pytest.raises(UserError) as caught:
        read(*words)
    assert str(caught.value).startswith(says) and "\n" not in str(caught.value)


def test_an_unquoted_brace_pattern_is_named():
    expanded = [
        "source=/data/train-0.tar",
        "source=/data/train-1.tar",
    ]  # what a shell makes of source=/data/train-{0,1}.tar
    with pytest.raises(UserError, match=r"source is given twice.*quote a value with braces.*source=a\{b,c\}"):
        parse(Everything, expanded, "prog")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no beta=N; see prog --help"),
        (["beta=1", "alhpa=2"], "no option alhpa=; did you mean alpha?; known: alpha=, beta="),
    ],
)
def test_unknown_and_missing_words(words, says):
    with pytest.raises(UserError, match=re.escape(says)):
        parse(Strict, words, "prog")


def test_words_by_position():
    assert parse(Places, ["show", "a=b"], "prog") == Places(action="show", name="a=b")
    assert parse(Places, ["list"], "prog") == Places(action="list")
    for words, says in (
        ([], "no list|show"),
        (["lst"], "action is one of list, show, not 'lst'; did you mean list?"),
        (["show", "a", "b"], "cannot use 'b': one word too many"),
    ):
        with pytest.raises(UserError, match=re.escape(says)):
            parse(Places, words, "prog")


@given(
    number=st.integers(1, 9),
    share=st.floats(0, 1, exclude_max=True),
    on=st.booleans(),
    text=st.text(),
    seeds=st.lists(st.integers(0, 99), min_size=1, unique=True),
    others=st.dictionaries(st.from_regex(r"[a-z]+\.[a-z]+", fullmatch=True), st.text()),
    order=st.randoms(),
)
def test_what_is_written_is_read_back_in_any_order(number, share, on, text, seeds, others, order):
    others = {key: value for key, value in others.items() if not key.startswith("made.")}
    words = [f"number={number}", f"share={share!r}", f"on={str(on).lower()}", f"text={text}", "--dry-run"]
    words += [f"seeds={','.join(map(str, seeds))}", *(f"{key}={value}" for key, value in others.items())]
    order.shuffle(words)
    found = read(*words)
    assert (found.number, found.share, found.on, found.text, found.dry_run) == (number, share, on, text, True)
    assert found.seeds == tuple(seeds) and found.others == others
    assert found.words == ("source=x", *(word for word in words if word != "--dry-run"))


def test_the_help_names_every_word_with_its_default_and_bounds():
    text = usage(Everything, "vitwarm all")
    call = " ".join(text.partition("\n\n")[0].split())
    assert call.startswith("usage: vitwarm all source=FOLDER [number=N] [share=X] [on=true|false] ")
    assert "[way=up|down]" in call and call.endswith(
        "[made.KEY=X ...] [KEY=X ...] [--dry-run] [--png [FILE]] [--csv FILE]"
    )
    assert "All kinds of words.\n\nA second paragraph." in text
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    assert lines["number=N"].endswith("a count (default 3, in [1, 9])")
    assert lines["on=true|false"].endswith("(default true)") and lines["names=TEXT"].endswith("(default a)")
    assert lines["source=FOLDER"].endswith("where from") and lines["text=TEXT"].endswith("a text")
    assert max(map(len, text.splitlines())) <= 100 and purpose(Everything) == "All kinds of words"


def test_the_words_as_typed_make_the_same_command_again():
    words = read("text=a b", "names=x,y", "--dry-run", "made.k={1, 2}").words
    again = parse(Everything, shlex.split(shlex.join(words)), "prog")
    assert again == parse(Everything, words, "prog") and again.made == {"k": "{1, 2}"} and not again.dry_run
