"""Rules made of rules."""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from vitwarm.procedural import RuleStream, keyed_rng, make_rule
from vitwarm.procedural.composite import _random_order

DYCK = {"name": "dyck", "k": 4}


def names(rule, row):
    return [rule.vocab.names[token] for token in row]


def test_mixture_rows_are_rows_of_their_rules_in_proportion():
    parts = [DYCK, {"name": "identity", "symbols": 9}, {"name": "eca", "width": 4}]
    rule = make_rule("mixture", rules=parts, weights=[1, 2, 5], task_prefix=True)
    rows = rule.sample(keyed_rng(0, "mixture"), 40_000, 17)
    task = rows.tokens[:, 0] - rule.vocab.ids["TASK0"]
    assert chisquare(np.bincount(task, minlength=3), [5000, 10_000, 25_000]).pvalue > 1e-4
    assert not rows.scored[:, 0].any()
    for which, plain in enumerate(parts):
        own = make_rule(**plain)
        for row, scored in zip(rows.tokens[task == which][:50, 1:], rows.scored[task == which][:50, 1:], strict=True):
            tokens = np.array([own.vocab.ids[name] for name in names(rule, row)])
            solved = own.solve(np.where(scored, 1, tokens)[None], scored[None])[0]
            assert (solved == tokens).all()  # the part's own oracle recognises its row


def test_mixture_shares_symbols_by_name():
    rule = make_rule("mixture", rules=[{"name": "sort"}, {"name": "identity"}, DYCK])
    assert rule.vocab.size == make_rule("sort").vocab.size + 8
    assert rule.vocab.names[:2] == ("PAD", "MASK") and rule.vocab.sep is not None
    assert make_rule("mixture", rules=[DYCK, DYCK], task_prefix=True).vocab.names[2:4] == ("TASK0", "TASK1")


def test_mixture_without_prefix_claims_only_what_can_be_told_apart():
    apart = make_rule("mixture", rules=[DYCK, {"name": "identity"}]).sample(keyed_rng(1), 200, 16)
    assert (apart.determined == apart.scored).all()
    alike = make_rule("mixture", rules=[{"name": "reverse"}, {"name": "identity"}])
    rows = alike.sample(keyed_rng(1), 200, 16)
    assert rows.scored.any() and not rows.determined.any()
    assert (alike.solve(rows.tokens, rows.scored)[rows.scored] == 1).all()
    half = make_rule("mixture", rules=[{"name": "identity", "symbols": 5}, {"name": "sort", "symbols": 50}])
    rows = half.sample(keyed_rng(2), 500, 16)
    told = rows.determined.any(axis=1)
    assert told.any() and not told.all()
    assert (half.solve(np.where(rows.scored, 1, rows.tokens), rows.scored)[told] == rows.tokens[told]).all()


@pytest.mark.parametrize("inner", [DYCK, {"name": "sort", "min_length": 2}, {"name": "dyck", "k": 2, "odd": "pad"}])
def test_shuffled_row_keeps_counts_and_nothing_else(inner):
    rule = make_rule("shuffled", rule=inner)
    rows = rule.sample(keyed_rng(3), 300, 17 if "odd" in inner else 16)
    source = make_rule(**inner).sample(keyed_rng(3), 300, 17 if "odd" in inner else 16)
    assert (np.sort(rows.tokens, axis=1) == np.sort(source.tokens, axis=1)).all()
    assert ((rows.tokens == 0) == (source.tokens == 0)).all()
    assert (rows.tokens != source.tokens).any(axis=1).mean() > 0.9
    for a, a_scored, b, b_scored in zip(rows.tokens, rows.scored, source.tokens, source.scored, strict=True):
        assert Counter(zip(a.tolist(), a_scored.tolist(), strict=True)) == Counter(
            zip(b.tolist(), b_scored.tolist(), strict=True)
        )
    assert not rows.determined.any()


def test_shuffled_order_is_uniform():
    inner = {"name": "dyck", "k": 1}  # ( ( ) ) and ( ) ( ): six orders of two openers and two closers
    rows = make_rule("shuffled", rule=inner).sample(keyed_rng(4), 12_000, 4)
    seen = Counter(map(tuple, rows.tokens.tolist()))
    assert len(seen) == 6 and chisquare(list(seen.values())).pvalue > 1e-4


def test_shuffled_output_leaves_the_input_alone():
    inner = {"name": "sort", "min_length": 3}
    rows = make_rule("shuffled", rule=inner, part="output").sample(keyed_rng(5), 200, 24)
    source = make_rule(**inner).sample(keyed_rng(5), 200, 24)
    assert (rows.scored == source.scored).all()
    assert (rows.tokens[~rows.scored] == source.tokens[~rows.scored]).all()
    assert (rows.tokens != source.tokens).any()
    for a, b, scored in zip(rows.tokens, source.tokens, source.scored, strict=True):
        assert sorted(a[scored]) == sorted(b[scored])


def test_curriculum_grows_with_mastery_and_stops_at_the_row():
    rule = make_rule("curriculum", rule={"name": "reverse"})
    length, sizes = 24, []
    while True:
        rows = rule.sample(keyed_rng(6), 20, length)
        lengths = set((rows.scored.sum(axis=1) - 1).tolist())
        assert len(lengths) == 1 and (rows.tokens[:, 2 * max(lengths) + 2 :] == 0).all()
        sizes += lengths
        assert rule.next_level(0.98, length) == rule.level
        level = rule.next_level(0.99, length)
        if level == rule.level:
            break
        rule = rule.at(level)
    assert sizes == [2, 4, 6, 8, 10]  # 12 would need 26 tokens
    assert (rule.at(99).sample(keyed_rng(6), 20, length).tokens == rows.tokens).all()


def test_curriculum_levels_resume_and_have_their_own_streams():
    rule = make_rule("curriculum", rule=DYCK, start=6)
    again = make_rule(**rule.at(3).spec())
    assert again == rule.at(3)
    a = RuleStream(rule.at(3), 0, "train", 32).chunk(5).tokens
    assert (RuleStream(again, 0, "train", 32).chunk(5).tokens == a).all()
    assert (RuleStream(rule.at(4), 0, "train", 32).chunk(5).tokens[:, :12] != a[:, :12]).any()


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("mixture", {"rules": []}, "list of rules"),
        ("mixture", {"rules": "dyck"}, "list of rules"),
        ("mixture", {"rules": [DYCK], "weights": [1, 2]}, "1 positive"),
        ("mixture", {"rules": [DYCK], "weights": [0]}, "positive"),
        ("mixture", {"rules": [DYCK, DYCK], "weights": [1e308, 1e308]}, "positive"),
        ("mixture", {"rules": [DYCK], "weights": ["much"]}, "numbers"),
        ("mixture", {"rules": [{"k": 3}]}, "must be a rule"),
        ("mixture", {"rules": [{"name": "dick"}]}, "did you mean 'dyck'"),
        ("shuffled", {"rule": 5}, "must be a rule"),
        ("shuffled", {}, "needs the parameter 'rule'"),
        ("curriculum", {"rule": DYCK, "start": 0}, "at least 1"),
        ("shuffled", {"rule": {"name": "dyck", "q": 3}}, "no parameter 'q'"),
        ("shuffled", {"rule": {"name": "curriculum", "rule": DYCK}}, "put the curriculum around it"),
        ("mixture", {"rules": [DYCK, {"name": "curriculum", "rule": DYCK}]}, "put the curriculum around it"),
    ],
)
def test_impossible_compositions_are_refused(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        make_rule(name, **parameters)


def test_lengths_are_checked_through():
    for rule in (make_rule("mixture", rules=[DYCK], task_prefix=True), make_rule("shuffled", rule=DYCK)):
        with pytest.raises(ValueError, match="even length"):
            rule.sample(keyed_rng(0), 1, 8 + (rule.name == "shuffled"))
    with pytest.raises(ValueError, match="level 0 needs sequences of 42"):
        make_rule("curriculum", rule={"name": "reverse"}, start=20).sample(keyed_rng(0), 1, 30)
    with pytest.raises(ValueError, match="even length, got 3"):  # not at level 0, but at the next
        make_rule("curriculum", rule=DYCK, step=1).check_length(8)


@pytest.mark.parametrize("length", [1, 2, 5, 2048, 2049])
def test_random_order_is_the_stable_argsort(length):
    order = _random_order(keyed_rng(1), 7, length)
    assert (order == np.argsort(keyed_rng(1).random((7, length)), axis=1, kind="stable")).all()
