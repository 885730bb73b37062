"""Exact laws of the rules on small cases, by following each definition step by step, and the test against them."""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from vitwarm.procedural import keyed_rng


def enumerate_walks(length, p_open, max_depth=None, balanced=True):
    """{string of 'u' and 'd': probability} by following the generator's rule step by step."""
    law = {}

    def walk(path, depth, probability):
        remaining = length - len(path)
        if remaining == 0:
            law[path] = law.get(path, 0) + probability
        elif balanced and remaining <= depth:
            walk(path + "d", depth - 1, probability)
        elif depth == 0:
            walk(path + "u", depth + 1, probability)
        elif max_depth is not None and depth >= max_depth:
            walk(path + "d", depth - 1, probability)
        else:
            walk(path + "u", depth + 1, probability * p_open)
            walk(path + "d", depth - 1, probability * (1 - p_open))

    walk("", 0, 1.0)
    return law


def enumerate_dyck(k, length, p_open, max_depth=None, balanced=True):
    """{token tuple: probability} of k-Dyck rows."""
    law = {(): 1.0}
    out = Counter()
    for path, probability in enumerate_walks(length, p_open, max_depth, balanced).items():
        law = {((), ()): probability}
        for step in path:
            grown = Counter()
            for (row, stack), p in law.items():
                if step == "d":
                    grown[row + (stack[-1] + 2 + k,), stack[:-1]] += p
                else:
                    for kind in range(k):
                        grown[row + (kind + 2,), stack + (kind,)] += p / k
            law = grown
        for (row, _), p in law.items():
            out[row] += p
    return dict(out)


def enumerate_shuffle(k, length, p_open, close, max_depth=None, balanced=True):
    """{token tuple: probability} of k-Dyck Shuffle rows; the open brackets are a sorted tuple of types."""
    out = Counter()
    for path, probability in enumerate_walks(length, p_open, max_depth, balanced).items():
        law = {((), ()): probability}
        for step in path:
            grown = Counter()
            for (row, opened), p in law.items():
                if step == "u":
                    for kind in range(k):
                        grown[row + (kind + 2,), tuple(sorted(opened + (kind,)))] += p / k
                    continue
                choices = opened if close == "instance" else tuple(set(opened))
                for kind in choices:
                    rest = list(opened)
                    rest.remove(kind)
                    grown[row + (kind + 2 + k,), tuple(rest)] += p / len(choices)
            law = grown
        for (row, _), p in law.items():
            out[row] += p
    return dict(out)


def assert_law(rule, length, law, count=40_000, seed=0):
    """Chi-square of samples against an enumerated law; nothing outside its support may occur."""
    assert sum(law.values()) == pytest.approx(1)
    rows = rule.sample(keyed_rng(seed, "law", rule.identity), count, length).tokens
    seen = Counter(map(tuple, rows.tolist()))
    assert set(seen) <= set(law)
    keys = sorted(law, key=law.get)
    expected, observed, e, o = [], [], 0.0, 0
    for key in keys:  # rare rows are pooled until a cell expects at least 10
        e, o = e + law[key] * count, o + seen[key]
        if e >= 10:
            expected.append(e)
            observed.append(o)
            e, o = 0.0, 0
    expected[-1] += e
    observed[-1] += o
    if len(expected) == 1:  # a single outcome: being in the support is all there is to check
        return
    assert chisquare(observed, np.array(expected) * count / sum(expected)).pvalue > 1e-4
