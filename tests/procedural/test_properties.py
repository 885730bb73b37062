"""What holds for every rule under all of its parameters, the smallest and the odd ones included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitwarm.procedural import Vocab, keyed_rng, list_rules, make_rule

SMALL = st.integers(1, 7)
MAYBE = st.none() | SMALL
P = st.sampled_from([0.0, 1.0, 0.5, 0.6]) | st.floats(0, 1)
BRACKETS = {
    "k": st.sampled_from([1, 2, 3, 64, 255, 257]),
    "p_open": P,
    "max_depth": MAYBE,
    "balanced": st.booleans(),
    "odd": st.sampled_from(["refuse", "pad"]),
    "min_length": MAYBE,
    "score": st.sampled_from(["closers", "all"]),
}
TASK = {"symbols": st.sampled_from([1, 2, 3, 99, 256, 257]), "end": st.booleans(), "min_length": MAYBE}
PLAIN = {
    "dyck": BRACKETS,
    "dyck_shuffle": BRACKETS | {"close": st.sampled_from(["instance", "type"])},
    "ww": {
        "symbols": SMALL,
        "packed": st.booleans(),
        "shortest": SMALL,
        "longest": SMALL,
        "score": st.sampled_from(["copy", "first"]),
    },
    **dict.fromkeys(("identity", "reverse", "sort", "set", "union", "stack"), TASK),
    "delete": TASK | {"hit": st.sampled_from(["present", "any"])},
    "eca": {
        "number": st.integers(0, 255),
        "width": MAYBE,
        "window": MAYBE,
        "block": st.integers(1, 4),
        "density": P,
        "start": st.sampled_from(["random", "single"]),
        "burn_in": st.integers(0, 3),
    },
}


def options(name):
    """Any subset of the rule's parameters, the rest at their defaults."""
    return st.fixed_dictionaries({}, optional=PLAIN[name]).map(lambda given: {"name": name} | given)


plain = st.sampled_from(sorted(PLAIN)).flatmap(options)
nested = st.one_of(
    plain,
    st.builds(
        lambda rule, part: {"name": "shuffled", "rule": rule, "part": part}, plain, st.sampled_from(["row", "output"])
    ),
    st.builds(
        lambda rule, start, step, threshold, level: {
            "name": "curriculum",
            "rule": rule,
            "start": start,
            "step": step,
            "threshold": threshold,
            "level": level,
        },
        plain,
        SMALL,
        SMALL,
        P,
        st.integers(0, 9),
    ),
    st.builds(
        lambda rules, weights, prefix: {
            "name": "mixture",
            "rules": rules,
            "task_prefix": prefix,
            "weights": weights and weights[: len(rules)],
        },
        st.lists(plain, min_size=1, max_size=3),
        st.none() | st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3),
        st.booleans(),
    ),
)


@pytest.mark.parametrize("length", range(6, 13))
def test_short_stacks_are_whole(length):
    """Three operations leave one symbol at most, two leave two."""
    rule = make_rule("stack", symbols=5, min_length=1)
    rows = rule.sample(keyed_rng(0), 200, length)
    assert (rule.solve(np.where(rows.determined, Vocab.mask, rows.tokens), rows.determined) == rows.tokens).all()
    for row in rows.tokens:
        at = row.tolist().index(rule.vocab.sep)
        left = []
        for token in row[:at]:
            left = left[:-1] if token == rule.vocab.pop else [*left, token]
        assert row[at + 1 : at + 2 + len(left)].tolist() == [*left[::-1], rule.vocab.end]


def test_every_rule_is_covered():
    assert {*PLAIN, "shuffled", "curriculum", "mixture"} == set(list_rules())


@settings(max_examples=3000, deadline=None, derandomize=True)
@given(spec=nested, length=st.integers(1, 40), count=st.integers(0, 9), seed=st.integers(0, 2**40), data=st.data())
def test_every_rule(spec, length, count, seed, data):
    try:
        rule = make_rule(**spec)
        rule.check_length(length)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert make_rule(**rule.spec()) == rule
    rows = rule.sample(keyed_rng(seed), count, length)  # a length that passed the check can be written
    for array, dtype in ((rows.tokens, np.int64), (rows.scored, bool), (rows.determined, bool)):
        assert array.shape == (count, length) and array.dtype == dtype and array.flags.c_contiguous
    assert ((rows.tokens >= 0) & (rows.tokens < rule.vocab.size)).all()
    assert (rows.tokens != rule.vocab.mask).all()
    assert len(set(rule.vocab.names)) == rule.vocab.size
    padded = rows.tokens == rule.vocab.pad
    assert (np.maximum.accumulate(padded, axis=1) == padded).all()  # PAD only behind the content
    assert not (rows.scored & padded).any() and not (rows.determined & ~rows.scored).any()
    again = rule.sample(keyed_rng(seed), count, length)
    assert (again.tokens == rows.tokens).all() and (again.scored == rows.scored).all()

    probability = data.draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    masked = rows.scored & (keyed_rng(seed, "mask").random(rows.tokens.shape) < probability)
    hidden = np.where(masked, rule.vocab.mask, rows.tokens)
    untouched = hidden.copy()
    solved = rule.solve(hidden, masked)
    assert (hidden == untouched).all()
    assert (solved[~masked] == rows.tokens[~masked]).all()
    sure = masked & rows.determined
    assert (solved[sure] == rows.tokens[sure]).all()  # the oracle is right wherever the rule determines the answer
    elsewhere = np.where(masked, rule.vocab.size - 1, rows.tokens)
    assert (rule.solve(elsewhere, masked) == solved).all()  # and never looks at what is hidden
