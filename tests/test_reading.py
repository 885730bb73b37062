"""Files of others: YAML that means the same to all its readers, JSON with bounds, one line for what cannot be used."""

import json
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitwarm import reading
from vitwarm.errors import UserError
from vitwarm.reading import dump_yaml, parse_json, parse_yaml, read_json, read_text, read_yaml


def refusal(function, *arguments, **more) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments, **more)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


# YAML 1.1, the core schema of YAML 1.2 and ours, written down by hand; a text that all take as text is one here.
SAME = {
    "0": 0, "7": 7, "-7": -7, "+5": 5, "1.5": 1.5, "1.": 1.0, ".5": 0.5, "010.5": 10.5, "1e3": 1000.0, "1.0e-7": 1e-7,
    ".5e-1": 0.05, "true": True, "False": False, "TRUE": True, "null": None, "~": None, "": None,
    "2024-1-1": "2024-1-1",
    "y": "y", "N": "N", "=": "=", "1a": "1a", "a_1": "a_1", "_1": "_1", "1-2": "1-2", "v1.10": "v1.10", "'010'": "010",
    '"yes"': "yes", ".": ".",
}  # fmt: skip
OTHERWISE = """010 -010 00 08 0o10 0x1F 0b11 1_000 1_0.5 12_12_768 1__0 1:30 1:30.5 190:20:30
    yes Yes YES no No NO on On ON off Off OFF""".split()  # noqa: SIM905


@pytest.mark.parametrize(("text", "value"), SAME.items())
def test_scalars_that_all_readers_take_alike(text, value):
    found = parse_yaml(f"[{{a: {text}}}]", "x")[0]["a"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", OTHERWISE)
def test_scalars_that_readers_take_differently(text):
    for written in (text, f"[{text}]", f"{{a: {text}}}", f"{{{text}: a}}", f"!!int {text}", f"!!bool {text}"):
        assert f"x: {text} is not the same to all readers of YAML" in refusal(parse_yaml, written, "x")
    for quoted in (f"'{text}'", f'"{text}"', f"|-\n  {text}\n"):
        assert parse_yaml(quoted, "x") == text


_TEXT = st.text(st.one_of(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), st.just("\n")))
_TEXT |= st.sampled_from([*OTHERWISE, "1.10", "null", "true", "<<", "2024-01-01", ""])
_NUMBERS = st.integers(-(10**40) + 1, 10**40 - 1) | st.floats(allow_nan=False)
_TREES = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXT,
    lambda part: st.lists(part) | st.dictionaries(_TEXT, part),
    max_leaves=8,
)


@given(_TREES)
def test_what_is_dumped_reads_back(tree):
    assert repr(parse_yaml(dump_yaml(tree), "x")) == repr(tree)


BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{a: 1, a: 1}", "x: the key a is there twice"),
        ("b: 1\na:\n  c: 010\n", "x, line 3: 010 is not"),
        ("[" * 3000, "x: nested too deeply"),
        ("[" * 40 + "]" * 40, "x: nested too deeply"),
        ("&a [*a]", "x: nested too deeply"),
        (BOMB, "x: more than 200,000 values"),
        ("{[1]: 2}", "x: the key [1] is no plain value"),
        ("!!timestamp x", "x: not readable as YAML: "),
        ("!!map [1]", "x: a mapping was tagged that is none"),
        ("!!set [a]", "x: a mapping was tagged that is none"),
        ("!!timestamp 2024-99-99", "x: not readable as YAML: month must be in 1..12"),
        ("!!python/object/apply:os.getpid []", "x: not readable as YAML: could not determine a constructor"),
        ("a: [1", "x: not readable as YAML: "),
        ("a\0b", "x: not readable as YAML: "),
    ],
)  # fmt: skip
def test_refused_yaml(text, says):
    assert says in refusal(parse_yaml, text, "x")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "x: not readable as JSON (it is empty)"),
        ("{", "x: not readable as JSON"),
        ("[]", "x: not a JSON object"),
        ("{}", "x: step is missing"),
        ('{"step": "1"}', "x: step is str, not int or float"),
        ('{"step": true}', "x: step is bool, not int or float"),
        ('{"step": 1' + 5000 * "0" + "}", "x: not readable as JSON"),
        ('{"step": ' + 100_000 * "[", "x: nested too deeply"),
        ('{"step": ' + 50 * "[" + 50 * "]" + "}", "x: nested too deeply"),
    ],
)
def test_refused_json(text, says):
    assert says in refusal(parse_json, text, "x", step=(int, float))


def test_files(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps({"name": "ö"}, ensure_ascii=False).encode())
    assert read_json(file, name=str) == {"name": "ö"}
    assert read_yaml(file) == {"name": "ö"}
    assert "a.json: 17 bytes, more than the 10 that" in refusal(read_text, file, most=10)
    file.write_bytes(b"caf\xe9")
    assert "a.json: not UTF-8 text (unexpected end of data at byte 3)" in refusal(read_text, file)
    os.mkfifo(tmp_path / "pipe")
    for name, says in (("pipe", "not a regular file"), ("gone", "cannot be read (No such file or directory)")):
        assert refusal(read_text, tmp_path / name) == f"{tmp_path / name}: {says}"
    assert re.search("not a regular file|Is a directory", refusal(read_text, tmp_path))
    (tmp_path / "empty.yaml").touch()
    assert read_yaml(tmp_path / "empty.yaml") == {}


def test_a_mapping_of_many_keys_takes_no_more_than_linear_time(monkeypatch, tmp_path):
    """Counted in comparisons of keys: of few with few others."""
    compared = []

    class Counted(str):
        __hash__ = str.__hash__

        def __eq__(self, other):
            compared.append(other)
            return str.__eq__(self, other)

    monkeypatch.setattr(reading._Loader, "construct_scalar", lambda self, node: Counted(node.value))
    tree = parse_yaml("\n".join(f"k{i}: x" for i in range(3000)), "here")
    assert len(tree) == 3000 and len(compared) < 10 * 3000
    (tmp_path / "large.yaml").write_text("a: 1\n" + "#" * reading._MOST_YAML, encoding="utf-8")
    with pytest.raises(UserError, match="more than the 2,097,152 that such a file may have"):
        read_yaml(tmp_path / "large.yaml")
