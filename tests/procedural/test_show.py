"""The command that shows rows, its pictures, and the sequential versions the benchmark compares with."""

import json
from math import isqrt
from random import Random

import numpy as np
import pytest
from bench import rules
from bench.sequential import SEQUENTIAL, sequential_batch

from vitwarm.analysis.sequences import plot
from vitwarm.cli import call
from vitwarm.errors import UserError
from vitwarm.procedural import keyed_rng, list_rules, make_rule
from vitwarm.procedural.rule import Sequences, Vocab
from vitwarm.procedural.show import colours, glyphs, render

COMPOSITE = {
    "mixture": '{"name": "mixture", "rules": ["sort", {"name": "dyck", "k": 3}], "task_prefix": true}',
    "shuffled": '{"name": "shuffled", "rule": "dyck_shuffle"}',
    "curriculum": '{"name": "curriculum", "rule": "reverse", "level": 3}',
}


@pytest.mark.parametrize("name", list_rules())
def test_every_rule_can_be_shown_and_drawn(name, tmp_path, capsys):
    picture = tmp_path / "rows.png"
    call("show", [f"rule={COMPOSITE.get(name, name)}", "count=2", "--png", str(picture)])
    output = capsys.readouterr().out
    assert output.startswith("sequence 0: ") and "\nsequence 1: " in output
    assert "\x1b" not in output  # not a terminal: no colour
    assert picture.read_bytes().startswith(b"\x89PNG") and [p.name for p in tmp_path.iterdir()] == ["rows.png"]


def test_text_shows_the_tokens_and_marks_the_hidden_ones():
    rule = make_rule("dyck", k=2)
    rows = rule.sample(keyed_rng(0), 2, 8)
    masked = rows.scored.copy()
    lines = render(rule, rows, masked, width=80, colour=False).splitlines()
    for index in (0, 1):
        text, marks = lines[3 * index + 1 : 3 * index + 3]
        assert text == "".join("()[]"[2 * ((t - 2) % 2) + (t >= 4)] for t in rows.tokens[index])
        assert marks == "".join("?" if hidden else " " for hidden in masked[index]).rstrip()
    shuffled = make_rule("shuffled", rule=rule)
    rows = shuffled.sample(keyed_rng(0), 1, 8)
    assert set(render(shuffled, rows, rows.scored, 80, False).splitlines()[2]) <= {"~", " "}
    coloured = render(shuffled, rows, rows.scored, 80, True)
    assert coloured.count("\x1b[7;38;2;") == rows.scored.sum()


@pytest.mark.parametrize("block", [1, 2])
def test_automata_show_the_diagram_and_what_is_left_of_it(block):
    rule = make_rule("eca", width=8, block=block)
    length = 3 * 8 // block + 1  # three states, and a token of padding
    rows = rule.sample(keyed_rng(3), 1, length)
    masked = rows.scored & (np.arange(length) % 3 == 0)
    beside = render(rule, rows, masked, 80, False).splitlines()[1:]
    below = render(rule, rows, masked, 16, False).splitlines()[1:]
    assert below[: len(beside)] == [line[: 8 // block * (block + (block > 1))].rstrip() for line in beside]
    assert [line.split("   ")[-1].strip() for line in beside] == [line.strip() for line in below[len(beside) :]]
    cells = "".join(below[: len(beside)]).replace(" ", ""), "".join(below[len(beside) :]).replace(" ", "")
    hidden = np.repeat(masked[0], block)[: len(cells[1])]
    assert [mark == "?" for mark in cells[1]] == hidden.tolist()
    assert all(mark == cell for cell, mark, gone in zip(*cells, hidden, strict=True) if not gone)


def test_automata_of_a_curriculum_have_the_rows_of_its_level(tmp_path):
    """Padding behind them does not make them wider."""
    inner = make_rule("eca")
    curriculum = make_rule("curriculum", rule=inner, level=1)
    rows, content = curriculum.sample(keyed_rng(4), 2, 64), curriculum.content_length(64)
    assert content < 64 and not rows.tokens[:, content:].any()
    lines = render(curriculum, rows, rows.scored, 80, False).splitlines()
    cells = ["".join(".#"[token - 2] for token in row) for row in rows.tokens[0, :content].reshape(-1, isqrt(content))]
    assert [line.split()[0] for line in lines[1 : 1 + len(cells)]] == cells
    sizes = []
    for rule, shown in ((curriculum, 64), (inner, content)):
        part = Sequences(*(a[:, :shown] for a in (rows.tokens, rows.scored, rows.determined)))
        plot(rule, part, part.scored, tmp_path / "rows.png")
        sizes.append((tmp_path / "rows.png").read_bytes()[16:24])  # width and height of a PNG
    assert sizes[0] == sizes[1]


def test_narrow_terminals_break_lines():
    rule = make_rule("sort")
    rows = rule.sample(keyed_rng(1), 1, 40)
    assert max(map(len, render(rule, rows, rows.scored, 30, False).splitlines()[1:])) <= 30


@pytest.mark.parametrize("name", [name for name in list_rules() if name != "mixture"])
def test_symbols_have_texts_and_colours_of_their_own(name):
    vocab = make_rule(name, **({"rule": "dyck"} if name in COMPOSITE else {})).vocab
    assert len(set(glyphs(vocab))) == vocab.size == len(colours(vocab))


@pytest.mark.parametrize(
    ("name", "options", "length"),
    [
        ("dyck", {"k": 4}, 48),
        ("dyck_shuffle", {"k": 4}, 48),
        ("ww", {"packed": True}, 60),
        ("identity", {}, 40),
        ("reverse", {"min_length": 2}, 40),
        ("sort", {"symbols": 5}, 40),
        ("set", {"symbols": 5}, 40),
        ("union", {"symbols": 5}, 40),
        ("delete", {"symbols": 5}, 40),
        ("stack", {}, 40),
    ],
)
def test_arcs_join_every_answer_to_its_origin(name, options, length):
    rule = make_rule(name, **options)
    rows = rule.sample(keyed_rng(2), 40, length)
    for tokens, scored in zip(rows.tokens, rows.scored, strict=True):
        pairs = rule.partners(tokens)
        step = rule.k if "dyck" in name else 0
        assert all(a < b and tokens[b] == tokens[a] + step for a, b in pairs)
        ends = [b for _, b in pairs]
        assert len({a for a, _ in pairs}) == len(ends)
        assert sorted(ends) == [t for t in np.flatnonzero(scored) if tokens[t] != rule.vocab.end]
        if name in ("dyck", "reverse", "stack"):  # nested: no two arcs cross
            assert not any(a < c < b < d for a, b in pairs for c, d in pairs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rule=dick"], "did you mean 'dyck'"),
        (["k=4"], "no rule=NAME; see"),
        (["rule=dyck", "fast"], "NAME=VALUE"),
        (["rule=dyck", "length=7"], "even length"),
        (["rule=dyck", "mask=2"], "mask must lie in [0, 1]"),
        (["rule=dyck", "--png"], "--png"),
        (["rule=dyck", "--png", "x.jpg"], ".png"),
        (["rule=dyck", "--png", "/nowhere/x.png"], "there is no folder /nowhere"),
        (["rule=dyck", "count=0"], "count must lie in"),
        (["rule=dyck", "count=none"], "whole number"),
        (["rule=dyck", "length=64", "count=1000000000000"], "1,000,000,000,000 sequences of 64 tokens are more than"),
        (["rule=dyck", "length=1000000000000"], "000 tokens are more than 1,000,000; show"),
        (["rule=dyck", "rule=ww"], "given twice"),
        (["rule=dyck", "name=ww"], "name= repeats rule="),
        (['rule={"name": "shuffled", "rule": {"name": ["dyck"]}}'], "there is no rule"),
        (["rule=dyck", "length=ten"], "whole number"),
        (["rule=[1]"], "there is no rule"),
        (['rule={"k": 3}'], "needs a name"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message):
    with pytest.raises(UserError) as caught:
        call("show", arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_help_names_the_rules(capsys):
    call("show", ["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in list_rules())


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_sequential_rows_are_rows_of_the_rule(name):
    length = {"eca": 196, "stack": 130}.get(name, 64)
    rule = make_rule(name)
    inputs, targets, scored, masked = sequential_batch(name, Random(0), 40, length, 0.5)
    assert (inputs == np.where(masked, 1, targets)).all() and not (masked & ~scored).any() and masked.any()
    if name != "dyck_shuffle":
        assert (rule.solve(np.where(scored, 1, targets), scored) == targets).all()
    ours = rule.sample(keyed_rng(3, name), 40, length)
    assert (ours.tokens.max() < rule.vocab.size) and targets.max() < rule.vocab.size
    mean, deviation = ours.scored.sum(axis=1).mean(), ours.scored.sum(axis=1).std()
    assert abs(scored.sum(axis=1).mean() - mean) <= 5 * deviation / np.sqrt(20) + 1e-9


def test_the_benchmark_measures_every_case(tmp_path, capsys):
    missed = rules.main(["--rounds", "2", "--batches", "10", "--json", str(tmp_path / "rules.json")])
    result = json.loads((tmp_path / "rules.json").read_text())
    assert {record["rule"] for record in result["rules"]} == set(SEQUENTIAL)
    for record in result["rules"]:
        assert record["passes"] == (record[f"{record['counted']}_mtokens_per_s"] >= record["bar"])
    assert missed == (not all(record["passes"] for record in result["rules"] + result["first_batch"]))
    assert rules.markdown(result) == capsys.readouterr().out.strip()
    for wrong in (["--peer", str(tmp_path)], ["--json", str(tmp_path / "nowhere" / "rules.json")]):
        with pytest.raises(SystemExit) as refused:
            rules.main(["--rounds", "2", *wrong])
        assert refused.value.code == 2 and "does not exist" in capsys.readouterr().err


def test_names_of_a_rule_of_ones_own_stand_as_they_are():
    for names in (("red", "green", "blue"), ("a", "b", "c"), ("(", ")", "x")):
        assert [text for text in glyphs(Vocab.of((), names)) if text in names] == list(names)
