"""The sequence tasks against plain Python on the same rows, their laws on small cases, and published statistics."""

from collections import Counter
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from laws import assert_law
from scipy.stats import chisquare

from vitwarm.procedural import keyed_rng, make_rule


def remove_first(x, target):
    return x[: x.index(target)] + x[x.index(target) + 1 :] if target in x else x


def run_stack(operations, pop):
    stack = []
    for operation in operations:
        stack = stack[:-1] if operation == pop else [*stack, operation]
    return list(reversed(stack))


PLAIN = {
    "identity": lambda inputs, pop: inputs[0],
    "reverse": lambda inputs, pop: list(reversed(inputs[0])),
    "sort": lambda inputs, pop: sorted(inputs[0]),
    "set": lambda inputs, pop: sorted(set(inputs[0]), key=inputs[0].index),
    "union": lambda inputs, pop: sorted(set(inputs[0] + inputs[1]), key=(inputs[0] + inputs[1]).index),
    "delete": lambda inputs, pop: remove_first(inputs[0], inputs[1][0]),
    "stack": lambda inputs, pop: run_stack(inputs[0], pop),
}
VARIANTS = [{}, {"symbols": 5}, {"end": False}, {"min_length": 2, "symbols": 7}, {"symbols": 300}]


def split(row, sep):
    parts = [[]]
    for token in row:
        if token == sep:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("length", [8, 64, 131])
def test_rows_are_what_plain_python_makes_of_their_inputs(name, options, length):
    rule = make_rule(name, **options)
    rows = rule.sample(keyed_rng(0, rule.identity), 100, length)
    vocab = rule.vocab
    for tokens, scored in zip(rows.tokens.tolist(), rows.scored.tolist(), strict=True):
        content = tokens[: tokens.index(0)] if 0 in tokens else tokens
        assert set(tokens[len(content) :]) <= {0}
        *inputs, output = split(content, vocab.sep)
        if rule.end:
            assert output.pop() == vocab.end
        assert output == PLAIN[name](inputs, vocab.pop)
        start = len(content) - len(output) - rule.end
        assert scored == [start <= i < len(content) for i in range(length)]
        if not options.get("min_length"):
            assert rule.length_of(sum(map(len, inputs)) - rule.extra(0)) <= length
    assert (rows.determined == rows.scored).all()


@pytest.mark.parametrize("symbols", [3, 99])  # few: an output of different symbols stays short, and content is long
@pytest.mark.parametrize("name", PLAIN)
def test_the_longest_content_that_fits_is_used(name, symbols):
    rule = make_rule(name, symbols=symbols)
    for length in range(rule.length_of(rule.smallest), 60):
        size = rule.size_for(length)
        assert rule.length_of(size) <= length < rule.length_of(size + 1)
        assert rule.size_for(rule.length_of(size)) == size
    assert make_rule(name, end=False).length_of(64) == {"union": 130, "delete": 130, "stack": 127}.get(name, 129)
    assert make_rule("delete", end=False, hit="any").length_of(64) == 131  # the papers' row


@pytest.mark.parametrize("name", ["identity", "set", "union", "delete"])
def test_inputs_are_uniform_and_independent(name):
    rule = make_rule(name, symbols=3, end=False, **({"hit": "any"} if name == "delete" else {}))
    size = 4
    inputs = Counter()
    for row in rule.sample(keyed_rng(1, name), 30_000, rule.length_of(size)).tokens.tolist():
        *given, _ = split(row, rule.vocab.sep)
        inputs[tuple(sum(given, []))] += 1
    assert len(inputs) == 3 ** (size + (name == "delete"))
    assert chisquare(list(inputs.values())).pvalue > 1e-4


def test_delete_law():
    """`present`: the symbol at a random position is deleted, so its chance is its share of x."""
    rule = make_rule("delete", symbols=3, end=False)
    first, sep = rule.first, rule.vocab.sep
    law = Counter()
    for x in product(range(first, first + 3), repeat=3):
        for target in x:
            row = (*x, sep, target, sep, *remove_first(list(x), target))
            law[row] += 1 / 27 / 3
    assert_law(rule, rule.length_of(3), law)


@pytest.mark.parametrize(("symbols", "size"), [(2, 5), (3, 4), (3, 6)])
def test_stack_law(symbols, size):
    rule = make_rule("stack", symbols=symbols, end=False)
    first, pop = rule.first, rule.vocab.pop
    length = rule.length_of(size)
    law = Counter()

    def follow(operations, stack, probability):
        t = len(operations)
        if t == size:
            row = (*operations, rule.vocab.sep, *reversed(stack))
            law[row + (0,) * (length - len(row))] += float(probability)
            return
        if len(stack) <= 1:
            chance = Fraction(1)
        elif t == size - 1 or len(stack) == symbols:
            chance = Fraction(0)
        else:
            chance = Fraction(3, 4) if t < 2 * size // 3 else Fraction(1, 4)
        free = [s for s in range(first, first + symbols) if s not in stack]
        for symbol in free if chance else ():
            follow((*operations, symbol), (*stack, symbol), probability * chance / len(free))
        if chance < 1:
            follow((*operations, pop), stack[:-1], probability * (1 - chance))

    follow((), (), Fraction(1))
    assert_law(rule, length, law)


def mean_stack(size, symbols):
    """Exact mean of what is left on the stack, by dynamic programming over (operation, items)."""
    law = {0: 1.0}
    for t in range(size):
        grown = Counter()
        for items, p in law.items():
            push = 0.75 if t < 2 * size // 3 else 0.25
            push = 1.0 if items <= 1 else 0.0 if t == size - 1 or items == symbols else push
            grown[items + 1] += p * push
            if push < 1:
                grown[items - 1] += p * (1 - push)
        law = grown
    return sum(items * p for items, p in law.items())


def test_published_statistics_of_the_papers_sizes():
    """arXiv 2601.21725: outputs of 47.3 (set), 10.9 (stack) tokens, and 53 % of deletions without a target."""
    rng, count = keyed_rng(2, "papers"), 20_000
    mean = {}
    for name in ("set", "union", "stack"):
        rule = make_rule(name, end=False)
        mean[name] = rule.sample(rng, count, rule.length_of(64)).scored.sum(axis=1).mean()
    exact = 99 * (1 - (98 / 99) ** 64)
    assert abs(mean["set"] - exact) < 0.1 and abs(mean["union"] - exact) < 0.1
    assert abs(mean["stack"] - mean_stack(64, 99)) < 0.15 and mean_stack(64, 99) == pytest.approx(10.9, abs=0.2)
    rule = make_rule("delete", hit="any", end=False)
    outputs = rule.sample(rng, count, rule.length_of(64)).scored.sum(axis=1)
    assert abs((outputs == 64).mean() - (98 / 99) ** 64) < 0.02
    assert (make_rule("delete", end=False).sample(rng, 500, 131).scored.sum(axis=1) == 63).all()


def test_random_lengths_are_uniform():
    rule = make_rule("reverse", min_length=3)
    lengths = (rule.sample(keyed_rng(3), 8000, 23).scored.sum(axis=1) - 1).tolist()
    assert sorted(set(lengths)) == list(range(3, 11))
    assert chisquare(list(Counter(lengths).values())).pvalue > 1e-4


@pytest.mark.parametrize("name", PLAIN)
def test_rows_that_are_too_short_are_refused(name):
    with pytest.raises(ValueError, match=r"too short; content of \d+ symbols needs \d+"):
        make_rule(name).sample(keyed_rng(0), 1, make_rule(name).length_of(make_rule(name).smallest) - 1)
    with pytest.raises(ValueError, match="too short"):
        make_rule(name, min_length=20).sample(keyed_rng(0), 1, 30)


def test_sampling_many_rows_covers_every_symbol():
    tokens = make_rule("sort", symbols=256).sample(keyed_rng(4), 400, 130).tokens
    assert set(np.unique(tokens)) >= set(range(4, 260))
