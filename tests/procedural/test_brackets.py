"""The bracket rules against their fully enumerated laws, a plain stack, and an independent sequential walk."""

from collections import Counter
from math import comb

import numpy as np
import pytest
from laws import assert_law, enumerate_dyck, enumerate_shuffle
from scipy.stats import chisquare

from vitwarm.procedural import keyed_rng, make_rule
from vitwarm.procedural.brackets import depth_path
from vitwarm.procedural.sampling import bernoulli


@pytest.mark.parametrize(("k", "length", "p"), [(2, 8, 0.5), (2, 8, 0.4375), (1, 12, 0.5), (3, 6, 0.625), (1, 2, 0.6)])
def test_dyck_follows_its_enumerated_law(k, length, p):
    law = enumerate_dyck(k, length, p)
    pairs = length // 2
    assert len(law) == comb(2 * pairs, pairs) // (pairs + 1) * k**pairs  # Catalan number times the types
    assert_law(make_rule("dyck", k=k, p_open=p), length, law)


CAPPED_OR_CUT = [(2, True, 8), (1, True, 6), (2, False, 7), (None, False, 6)]


@pytest.mark.parametrize(("max_depth", "balanced", "length"), CAPPED_OR_CUT)
def test_dyck_variants_follow_their_laws(max_depth, balanced, length):
    law = enumerate_dyck(2, length, 0.6, max_depth, balanced)
    assert_law(make_rule("dyck", k=2, max_depth=max_depth, balanced=balanced), length, law)


def depth_marginals(length, p_open, max_depth=None):
    """P(depth after position t), by dynamic programming over (position, depth)."""
    law, rows = {0: 1.0}, []
    for t in range(length):
        grown = Counter()
        for depth, p in law.items():
            if length - t <= depth or (max_depth and depth == max_depth):
                grown[depth - 1] += p
            elif depth == 0:
                grown[1] += p
            else:
                grown[depth + 1] += p * p_open
                grown[depth - 1] += p * (1 - p_open)
        law = grown
        rows.append(law)
    return rows


@pytest.mark.parametrize("max_depth", [None, 16])
def test_depths_at_full_length_match_the_exact_marginals(max_depth):
    count, length, k = 20_000, 196, 64
    tokens = make_rule("dyck", k=k, max_depth=max_depth).sample(keyed_rng(1, "depth"), count, length).tokens
    depth = np.cumsum(np.where(tokens < 2 + k, 1, -1), axis=1)
    worst = 1.0
    for t, law in enumerate(depth_marginals(length, 0.6, max_depth)):
        seen = Counter(depth[:, t].tolist())
        assert set(seen) <= set(law)
        common = [d for d in law if law[d] * count >= 10]
        if len(common) > 1:
            expected = np.array([law[d] for d in common])
            observed = [seen[d] for d in common]
            worst = min(worst, chisquare(observed, expected / expected.sum() * sum(observed)).pvalue)
    assert worst > 1e-4 / length * 5


def test_dyck_rows_close_by_a_plain_stack_and_types_are_uniform():
    k, length = 64, 196
    rows = make_rule("dyck").sample(keyed_rng(2, "stack"), 500, length)
    for row in rows.tokens.tolist():
        stack = []
        for token in row:
            if token < 2 + k:
                stack.append(token)
            else:
                assert token == stack.pop() + k
        assert not stack
    assert rows.scored.sum(1).tolist() == [length // 2] * 500
    assert (rows.scored == (rows.tokens >= 2 + k)).all()
    openers = np.bincount(rows.tokens[~rows.scored] - 2, minlength=k)
    assert chisquare(openers).pvalue > 1e-4


def test_shapes_that_the_papers_data_have():
    """Simulated figures of the papers' settings: how deep, how many closers wait for the end, how few rows balance."""
    rows = make_rule("dyck").sample(keyed_rng(7), 4000, 196)
    depth = np.cumsum(np.where(rows.scored, -1, 1), axis=1)
    assert depth.max(axis=1).mean() == pytest.approx(36, abs=0.6)
    assert rows.scored[:, -49:].sum() / rows.scored.sum() == pytest.approx(0.41, abs=0.01)
    cut = make_rule("dyck_shuffle", p_open=0.5, close="type", max_depth=16, balanced=False)
    scored = cut.sample(keyed_rng(7), 1000, 2048).scored
    assert 0.02 < (scored.sum(axis=1) == 1024).mean() < 0.08


@pytest.mark.parametrize("name", ["dyck", "dyck_shuffle"])
def test_rows_beyond_sixteen_bits(name):
    length = 70_000
    rule = make_rule(name, k=30_000, p_open=0.99)
    rows = rule.sample(keyed_rng(8), 2, length)
    types = (rows.tokens - 2) % 30_000
    for kinds, scored in zip(types, rows.scored, strict=True):
        assert scored.sum() == length // 2 and (np.bincount(kinds, minlength=1) % 2 == 0).all()
    assert (rule.solve(rows.tokens, rows.determined) == rows.tokens).all()


def test_odd_lengths_are_refused_or_end_in_one_pad():
    with pytest.raises(ValueError, match="even length"):
        make_rule("dyck").sample(keyed_rng(0), 4, 7)
    rows = make_rule("dyck", k=2, odd="pad").sample(keyed_rng(0), 50, 7)
    assert (rows.tokens[:, -1] == 0).all() and (rows.tokens[:, :-1] > 1).all()
    assert rows.scored.sum(1).tolist() == [3] * 50


@pytest.mark.parametrize("close", ["instance", "type"])
@pytest.mark.parametrize(
    ("k", "length", "options"),
    [
        (2, 8, {}),
        (3, 6, {}),
        (1, 10, {}),
        (2, 8, {"max_depth": 2}),
        (2, 7, {"balanced": False}),
        (3, 5, {"balanced": False, "max_depth": 3}),
    ],
)
def test_shuffle_follows_its_enumerated_law(close, k, length, options):
    law = enumerate_shuffle(k, length, 0.55, close, options.get("max_depth"), options.get("balanced", True))
    assert_law(make_rule("dyck_shuffle", k=k, p_open=0.55, close=close, **options), length, law)


@pytest.mark.parametrize("close", ["instance", "type"])
@pytest.mark.parametrize("length", [196, 2048])
def test_shuffle_rows_balance_type_by_type(close, length):
    k = 64
    tokens = make_rule("dyck_shuffle", close=close).sample(keyed_rng(3, close), 64, length).tokens
    for row in tokens.tolist():
        opened = Counter()
        for token in row:
            opened[(token - 2) % k] += 1 if token < 2 + k else -1
            assert opened[(token - 2) % k] >= 0
        assert not any(opened.values())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dyck", {"k": 2}),
        ("dyck", {"k": 2, "balanced": False}),
        ("dyck_shuffle", {"k": 2}),
        ("dyck_shuffle", {"k": 3}),
        ("dyck_shuffle", {"k": 2, "close": "type", "balanced": False}),
    ],
)
def test_determined_is_exactly_what_every_legal_row_agrees_on(name, options):
    """Against a search through all legal rows: what the openers in sight leave open, and what they do not."""
    rule, length = make_rule(name, **options), 6
    balanced, k = options.get("balanced", True), options["k"]
    law = (
        enumerate_dyck(k, length, 0.5, balanced=balanced)
        if name == "dyck"
        else enumerate_shuffle(k, length, 0.5, "type", balanced=balanced)
    )
    support = np.array(sorted(law))
    rng = keyed_rng(4, rule.identity)
    rows = rule.sample(rng, 300, length)
    for token, scored, determined in zip(rows.tokens, rows.scored, rows.determined, strict=True):
        for hidden in (scored, scored & (rng.random(length) < 0.5)):
            # hiding a closer tells that it is one, since nothing else is ever hidden
            legal = support[((support == token) | (hidden & (support >= 2 + k))).all(axis=1)]
            agreed = (legal == token).all(axis=0)
            if (hidden == scored).all():
                assert (determined == (agreed & scored)).all()
            assert agreed[determined].all()
            solved = rule.solve(np.where(hidden, 1, token)[None], hidden[None])[0]
            assert (solved[agreed] == token[agreed]).all()
            assert (legal == solved).all(axis=1).any()


@pytest.mark.parametrize("balanced", [True, False])
def test_random_lengths_are_uniform_and_padded(balanced):
    rule = make_rule("dyck", k=1, min_length=3, balanced=balanced)
    tokens = rule.sample(keyed_rng(5, balanced), 6000, 11 - balanced).tokens
    lengths = (tokens != 0).sum(axis=1)
    assert ((tokens == 0) == (np.arange(tokens.shape[1]) >= lengths[:, None])).all()
    expected = [4, 6, 8, 10] if balanced else list(range(3, 12))
    seen = Counter(lengths.tolist())
    assert sorted(seen) == expected and chisquare([seen[n] for n in expected]).pvalue > 1e-4
    six = tokens[lengths == 6][:, :6]
    law = enumerate_dyck(1, 6, 0.6, balanced=balanced)
    counts = Counter(map(tuple, six.tolist()))
    assert set(counts) <= set(law)
    assert chisquare([counts[row] for row in law], np.array(list(law.values())) * len(six)).pvalue > 1e-4


def test_scoring_everything_leaves_nothing_determined():
    rule = make_rule("dyck", k=3, score="all", odd="pad")
    rows = rule.sample(keyed_rng(6), 20, 9)
    assert (rows.scored == (rows.tokens != 0)).all() and not rows.determined.any()
    assert (rule.solve(rows.tokens, rows.scored)[rows.scored] == 1).all()


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 61])
@pytest.mark.parametrize("max_depth", [1, 2, 5, 60, 61])
def test_bounded_walks_are_those_of_one_step_at_a_time(length, max_depth):
    ups = bernoulli(keyed_rng(2), 0.6, (20, length))
    depths = depth_path(keyed_rng(2), 20, length, 0.6, max_depth, balanced=False)
    for row, depth in zip(ups, depths, strict=True):
        now = 0
        for up, after in zip(row, depth, strict=True):
            now += 1 if now == 0 or (up and now < max_depth) else -1
            assert after == now
