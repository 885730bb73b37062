"""Groups as people write them: what each word means, and what is refused."""

import pytest

from vitwarm.errors import UserError
from vitwarm.selection import Selection, parse_control


@pytest.mark.parametrize(("words", "depth", "blocks"), [
    ("trunk", 12, None),
    ("layers=8-11", 12, {8, 9, 10, 11}),
    ("layers=0+4-6", 12, {0, 4, 5, 6}),
    ("layers=last:4", 12, {8, 9, 10, 11}),
    ("layers=first:2+last:1", 6, {0, 1, 5}),
    ("layers=middle", 12, {4, 5, 6, 7}),
    ("attention layers=last", 6, {4, 5}),
])  # fmt: skip
def test_blocks(words, depth, blocks):
    assert Selection.parse(words).blocks(depth) == blocks == Selection.parse(words.split()).blocks(depth)


@pytest.mark.parametrize("depth", [3, 5, 6, 7, 12, 24, 40])
def test_thirds_divide_the_blocks_among_them(depth):
    thirds = [Selection.parse(f"layers={name}").blocks(depth) for name in ("first", "middle", "last")]
    assert sorted(b for third in thirds for b in third) == list(range(depth))
    assert max(map(len, thirds)) - min(map(len, thirds)) <= 1


def test_kinds_unite_and_what_narrows_brings_its_own():
    assert Selection.parse(["mlp", "norm"]).kinds == ("mlp", "norm")
    assert Selection.parse("layers=0").kinds == ("trunk",)
    heads = Selection.parse("heads=1+2:0")
    assert heads.kinds == ("attention",) and heads.heads_of(0) == {1} and heads.heads_of(2) == {0, 1}
    assert Selection.parse("mlp").heads_of(0) is None


@pytest.mark.parametrize(("words", "says"), [
    ("atention", "unknown tensor group 'atention'"),
    ("", "no tensor group"),
    ("layers=", "cannot use"),
    ("layers=x", "write layers="),
    ("layers=3-", "write layers="),
    ("layers=0 layers=2", "stands twice"),
    ("heads=a", "BLOCK:HEAD"),
    ("mlp heads=0", "leave out mlp"),
    ("embedding layers=0", "leave out embedding"),
])  # fmt: skip
def test_what_is_no_selection(words, says):
    with pytest.raises(UserError, match=says):
        Selection.parse(words)


@pytest.mark.parametrize("words", ["layers=6", "layers=4-6", "layers=last:7", "layers=5-3", "layers=first:0"])
def test_blocks_that_are_not_there(words):
    with pytest.raises(UserError, match="the model has 6 blocks"):
        Selection.parse(words).blocks(6)


def test_controls():
    assert parse_control("shuffle") == ("shuffle", None) and parse_control("noise:0.1") == ("noise", 0.1)
    for text in ("noise", "shuffle:1", "noise:x", "noise:-1", "noise:inf", "noise:nan", "blur", "", None):
        with pytest.raises(UserError, match="write shuffle, gaussian"):
            parse_control(text)
