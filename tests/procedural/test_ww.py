"""WW: copies, their law, and how pairs are packed."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from laws import assert_law
from scipy.stats import chisquare

from vitwarm.procedural import keyed_rng, make_rule


def test_single_pair_law():
    law = {(*w, *w, 0): 1 / 27 for w in product(range(2, 5), repeat=3)}
    assert_law(make_rule("ww", symbols=3), 7, law)


@pytest.mark.parametrize("score", ["copy", "first"])
def test_single_pair_rows(score):
    rows = make_rule("ww", score=score).sample(keyed_rng(0), 50, 196)
    first, copy = rows.tokens[:, :98], rows.tokens[:, 98:]
    assert (first == copy).all()
    assert (rows.scored[:, :98] == (score == "first")).all() and (rows.scored[:, 98:] == (score == "copy")).all()
    assert (rows.determined == rows.scored).all()


def packed_law(length, shortest, longest):
    """{tuple of |w|: probability}: pairs follow while one more fits, each length uniform among those that fit."""
    law = {}

    def follow(sizes, left, probability):
        fitting = [n for n in range(shortest, longest + 1) if 2 * n + 1 <= left]
        if not fitting:
            law[sizes] = probability
        for n in fitting:
            follow((*sizes, n), left - 2 * n - 1, probability / len(fitting))

    follow((), length, 1.0)
    return law


@pytest.mark.parametrize(("length", "shortest", "longest"), [(30, 2, 6), (23, 3, 32), (9, 1, 1)])
def test_packed_pairs(length, shortest, longest):
    rule = make_rule("ww", symbols=4, packed=True, shortest=shortest, longest=longest)
    rows = rule.sample(keyed_rng(1, length), 4000, length)
    sep, seen = rule.vocab.sep, Counter()
    for tokens, scored in zip(rows.tokens.tolist(), rows.scored.tolist(), strict=True):
        content = tokens[: tokens.index(0)] if 0 in tokens else tokens
        assert set(tokens[len(content) :]) <= {0} and content[-1] == sep
        pairs, expected = [], []
        for token in content:
            if token == sep:
                expected += [False] * (len(pairs) // 2) + [True] * (len(pairs) // 2) + [False]
                assert pairs[: len(pairs) // 2] == pairs[len(pairs) // 2 :]
                pairs = []
            else:
                pairs.append(token)
        assert scored == expected + [False] * (length - len(content))
        stops = [-1, *(i for i, token in enumerate(content) if token == sep)]
        seen[tuple((b - a - 1) // 2 for a, b in zip(stops, stops[1:], strict=False))] += 1
    law = packed_law(length, shortest, longest)
    assert set(seen) <= set(law)
    common = [sizes for sizes in law if law[sizes] * 4000 >= 5]
    if len(common) > 1:
        expected = np.array([law[sizes] for sizes in common])
        observed = np.array([seen[sizes] for sizes in common])
        assert chisquare(observed, expected / expected.sum() * observed.sum()).pvalue > 1e-4


def test_refusals():
    with pytest.raises(ValueError, match="longest"):
        make_rule("ww", shortest=5, longest=4)
    with pytest.raises(ValueError, match="too short"):
        make_rule("ww", packed=True).sample(keyed_rng(0), 1, 6)
