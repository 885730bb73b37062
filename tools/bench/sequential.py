"""The rules in plain sequential Python, one row and one symbol at a time: what the benchmark compares with.

Written as one would without arrays in mind, with the default parameters only and the same token ids as the rules.
"""

from collections.abc import Callable
from random import Random

import numpy as np

__all__ = ["SEQUENTIAL", "sequential_batch"]

Row = tuple[list[int], list[bool]]
_SYMBOLS, _SEP, _END, _FIRST = 99, 2, 3, 4


def _dyck(random: Random, length: int, k: int = 64, p_open: float = 0.6, shuffle: bool = False) -> Row:
    tokens, scored, stack = [], [], []
    while len(tokens) < length:
        remaining = length - len(tokens)
        if remaining > len(stack) and (not stack or random.random() < p_open):
            kind = random.randrange(k)
            stack.append(kind)
            tokens.append(2 + kind)
            scored.append(False)
        else:
            if shuffle:
                pick = random.randrange(len(stack))
                stack[pick], stack[-1] = stack[-1], stack[pick]
            tokens.append(2 + k + stack.pop())
            scored.append(True)
    return tokens, scored


def _dyck_shuffle(random: Random, length: int) -> Row:
    return _dyck(random, length, shuffle=True)


def _ww(random: Random, length: int) -> Row:
    w = [2 + random.randrange(64) for _ in range(length // 2)]
    return w + w, [False] * len(w) + [True] * len(w)


def _eca(random: Random, length: int, number: int = 110) -> Row:
    width = int(length**0.5)
    state = [random.randrange(2) for _ in range(width)]
    cells = list(state)
    for _ in range(length // width - 1):
        state = [number >> (4 * state[i - 1] + 2 * state[i] + state[(i + 1) % width]) & 1 for i in range(width)]
        cells += state
    return [2 + cell for cell in cells], [False] * width + [True] * (len(cells) - width)


def _row(inputs: list[list[int]], output: list[int]) -> Row:
    before = [token for given in inputs for token in (*given, _SEP)]
    return before + output + [_END], [False] * len(before) + [True] * (len(output) + 1)


def _task(inputs_of: Callable[[Random, int], list[list[int]]], answer: Callable, marks: int) -> Callable:
    def row(random: Random, length: int) -> Row:
        inputs = inputs_of(random, (length - marks) // 2)
        return _row(inputs, answer(inputs))

    return row


def _one(random: Random, size: int) -> list[list[int]]:
    return [[_FIRST + random.randrange(_SYMBOLS) for _ in range(size)]]


def _two(random: Random, size: int) -> list[list[int]]:
    return _one(random, size - size // 2) + _one(random, size // 2)


def _with_target(random: Random, size: int) -> list[list[int]]:
    x = _one(random, size)[0]
    return [x, [x[random.randrange(size)]]]


def _unique(inputs: list[list[int]]) -> list[int]:
    return list(dict.fromkeys(token for given in inputs for token in given))


def _without(inputs: list[list[int]]) -> list[int]:
    x = list(inputs[0])
    x.remove(inputs[1][0])
    return x


def _stack(random: Random, length: int) -> Row:
    size, pop, first = length // 2, _FIRST, _FIRST + 1
    operations, stack = [], []
    for t in range(size):
        push = random.random() < 0.75 if t < 2 * size // 3 else random.random() >= 0.75
        if len(stack) <= 1 or (push and t < size - 1):
            symbol = first + random.randrange(_SYMBOLS)
            while symbol in stack:
                symbol = first + random.randrange(_SYMBOLS)
            stack.append(symbol)
            operations.append(symbol)
        else:
            stack.pop()
            operations.append(pop)
    return _row([operations], stack[::-1])


SEQUENTIAL: dict[str, Callable[[Random, int], Row]] = {
    "dyck": _dyck,
    "dyck_shuffle": _dyck_shuffle,
    "ww": _ww,
    "identity": _task(_one, lambda inputs: inputs[0], 2),
    "reverse": _task(_one, lambda inputs: inputs[0][::-1], 2),
    "sort": _task(_one, lambda inputs: sorted(inputs[0]), 2),
    "set": _task(_one, _unique, 2),
    "union": _task(_two, _unique, 3),
    "delete": _task(_with_target, _without, 3),
    "stack": _stack,
    "eca": _eca,
}


def sequential_batch(name: str, random: Random, count: int, length: int, mask_prob: float) -> tuple[np.ndarray, ...]:
    """inputs, targets (B, N) int64, scored and masked (B, N) bool: a batch for the masked objective."""
    targets, scored = np.zeros((count, length), np.int64), np.zeros((count, length), bool)
    for index in range(count):
        tokens, asked = SEQUENTIAL[name](random, length)
        targets[index, : len(tokens)] = tokens
        scored[index, : len(tokens)] = asked
    masked = np.array([[random.random() < mask_prob for _ in range(length)] for _ in range(count)]) & scored
    return np.where(masked, 1, targets), targets, scored, masked
