"""Algorithmic tasks: every row is a right answer by plain Python, masks are the papers', splits never meet."""

import numpy as np
import pytest

from vitwarm.procedural.algorithmic import CHUNK, HELD_OUT, TASKS, TaskStream, held_out, make_task

SMALL = {"haystack": 3, "addition": 2, "reversed_addition": 2, "multiplication": 2, "sorting": 3}


def rows_of(name, size=None, split="train", count=CHUNK, seed=0):
    return TaskStream(make_task(name, size), seed, split).rows(0, count)


def number(digits, reverse):
    return int("".join(map(str, digits[::-1] if reverse else digits)))


@pytest.mark.parametrize(
    ("name", "length"),
    [("haystack", 63), ("addition", 19), ("reversed_addition", 34), ("multiplication", 24), ("sorting", 21)],
)
def test_lengths_in_the_papers_sizes(name, length):
    rows = rows_of(name)
    assert rows.tokens.shape == rows.published.shape == rows.answer.shape == (CHUNK, length)
    assert rows.tokens.min() >= 0 and rows.tokens.max() < TASKS[name].vocab_size


@pytest.mark.parametrize("size", [None, 1, 7])
def test_a_haystack_row_asks_for_the_value_of_one_of_its_keys(size):
    rows = rows_of("haystack", size)
    counts = set()
    for tokens, answer in zip(rows.tokens.tolist(), rows.answer, strict=True):
        query = next(i for i, t in enumerate(tokens) if t >= 158)
        pairs = dict(zip(tokens[0:query:2], tokens[1:query:2], strict=True))
        counts.add(len(pairs))
        assert 2 * len(pairs) == query and all(128 <= k < 158 and 1 <= v < 128 for k, v in pairs.items())
        assert tokens[query + 1] == pairs[tokens[query] - 30]
        assert not any(tokens[query + 2 :])
        assert np.flatnonzero(answer).tolist() == [query + 1]
    assert counts == set(range(1, (size or 30) + 1))
    assert (rows.published == rows.answer).all()


@pytest.mark.parametrize("size", [None, 1, 4])
@pytest.mark.parametrize("name", ["addition", "reversed_addition", "multiplication"])
def test_arithmetic_is_right(name, size):
    rows, task = rows_of(name, size), make_task(name, size)
    reverse = name == "reversed_addition"
    n = task.size
    for tokens, answer, published in zip(rows.tokens.tolist(), rows.answer, rows.published, strict=True):
        a, op, b, equals = tokens[:n], tokens[n], tokens[n + 1 : 2 * n + 1], tokens[2 * n + 1]
        assert (op, equals) == (10, 11) and max(a + b) < 10
        assert a[-1 if reverse else 0] > 0 and b[-1 if reverse else 0] > 0
        x, y = number(a, reverse), number(b, reverse)
        result = str(x * y if name == "multiplication" else x + y)
        digits = [20 + int(d) for d in (result[::-1] if reverse else result)]
        rest = tokens[2 * n + 2 :]
        assert rest == digits + [30] + [12] * (len(rest) - len(digits) - 1)
        first = 2 * n + 2
        assert np.flatnonzero(answer).tolist() == list(range(first, first + len(digits) + 1))
        behind = range(first + 1, min(first + len(digits) + 2, len(tokens)))  # digits but the first, stop, one pad
        assert np.flatnonzero(published).tolist() == list(behind)


@pytest.mark.parametrize(("name", "share"), [("addition", 0.23), ("reversed_addition", 0.13), ("multiplication", 0.18)])
def test_share_of_stops_and_pads_in_the_published_score(name, share):
    """As measured on the papers' public code."""
    rows = rows_of(name, count=4 * CHUNK)
    scored = rows.tokens[rows.published]
    assert np.isin(scored, (12, 30)).mean() == pytest.approx(share, abs=0.01)


def test_sorting_sorts():
    rows = rows_of("sorting", 5)
    for tokens, answer in zip(rows.tokens.tolist(), rows.answer, strict=True):
        assert tokens[5] == 100 and tokens[6:] == sorted(tokens[:5]) and max(tokens[:5]) < 100
        assert np.flatnonzero(answer).tolist() == list(range(6, 11))


@pytest.mark.parametrize("name", sorted(TASKS))
def test_training_never_meets_validation_not_even_where_questions_are_few(name):
    """Under any seeds: what is held out is decided by the row itself."""
    train = {row.tobytes() for seed in (0, 1) for row in rows_of(name, SMALL[name], count=4 * CHUNK, seed=seed).tokens}
    val = {row.tobytes() for seed in (0, 2) for row in rows_of(name, SMALL[name], "validation", seed=seed).tokens}
    assert not train & val
    drawn = make_task(name, SMALL[name]).draw(np.random.default_rng(0), 20000)
    different = np.unique(drawn, axis=0)
    assert held_out(different).mean() == pytest.approx(1 / HELD_OUT, abs=4 * (16 * len(different)) ** -0.5)


def test_rows_are_a_pure_function_of_seed_and_number():
    task = make_task("addition")
    whole = TaskStream(task, 3, "train").rows(0, 3 * CHUNK).tokens
    stream = TaskStream(task, 3, "train")
    for start, stop in ((CHUNK - 5, CHUNK + 5), (0, 7), (2 * CHUNK, 3 * CHUNK), (40, 1200)):
        assert (stream.rows(start, stop).tokens == whole[start:stop]).all()
    assert not (TaskStream(task, 4, "train").rows(0, 50).tokens == whole[:50]).all(1).any()


@pytest.mark.parametrize("name", sorted(TASKS))
def test_impossible_sizes(name):
    for size in (0, 10**6):
        with pytest.raises(ValueError, match="size must lie in"):
            make_task(name, size)
