"""Sequence tasks of the language-model papers: inputs SEP output. Identity, reverse, sort, set, union, delete, stack.

Sources: arXiv 2601.21725 and 2505.22308. A sequence reads `input SEP output END`, with the output eligible, and PAD on
the right. In a sequence of N tokens the content is as long as surely fits, or of a random length from
`min_length` on. The papers' sequences have no END: a model trained on those never learns to stop. `end=false` gives
their layout.
"""

from abc import abstractmethod
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from vitwarm.procedural.registry import register
from vitwarm.procedural.rule import Rule, Sequences, Vocab, parameter
from vitwarm.procedural.sampling import below, bernoulli

__all__ = ["Delete", "Identity", "Reverse", "SetTask", "Sort", "Stack", "TaskRule", "Union"]

Piece = tuple[np.ndarray, np.ndarray | None]
"""Symbols (B, M) and which of them exist (B, M), None for all: kept symbols are written side by side."""


@dataclass(frozen=True)
class TaskRule(Rule):
    """Base of the tasks: content symbols, the layout, and an oracle that parses the inputs and computes the answer.

    A subclass gives `parts`, the sampler over whole arrays, and `answer`, the definition in plain Python that the
    oracle uses, so that each checks the other.
    """

    specials: ClassVar[tuple[str, ...]] = ()
    inputs: ClassVar[int] = 1  # a SEP stands behind each
    smallest: ClassVar[int] = 1
    symbols: int = parameter(99, "content symbols, drawn uniformly", low=1, high=60000)
    end: bool = parameter(True, "END closes the output and is eligible; false: no END, as in the papers")
    min_length: int | None = parameter(
        None,
        "shortest content: lengths are uniform from here to the longest that fits; none: always the longest",
        low=1,
    )

    @cached_property
    def vocab(self) -> Vocab:
        specials = ("SEP", *(("END",) if self.end else ()), *self.specials)
        return Vocab.of(specials, map(str, range(self.symbols)))

    @property
    def first(self) -> int:
        """Id of the first content symbol."""
        return self.vocab.size - self.symbols

    @abstractmethod
    def parts(self, rng: np.random.Generator, sizes: np.ndarray, longest: int) -> list[Piece]:
        """The inputs and, last, the output, for content of `sizes` (B,) symbols, none above `longest`.

        Symbols are counted from 0; an array may be of any integer type.
        """

    @abstractmethod
    def answer(self, inputs: list[list[int]]) -> list[int]:
        """The output that belongs to the inputs, as token ids."""

    def longest_output(self, size: int) -> int:
        return size

    def extra(self, size: int) -> int:
        """Input symbols beside the content."""
        return 0

    def length_of(self, size: int) -> int:
        return size + self.extra(size) + self.inputs + self.longest_output(size) + self.end

    def size_for(self, length: int) -> int:
        """The longest content that surely fits into `length` tokens, 0 when none does."""
        return bisect_right(range(1, length + 1), length, key=self.length_of)

    def check_length(self, length: int) -> None:
        shortest = max(self.smallest, self.min_length or 0)
        if self.size_for(length) < shortest:
            raise ValueError(
                f"{self.name}: sequences of {length} tokens are too short; content of {shortest} symbols needs "
                f"{self.length_of(shortest)}"
            )

    def draw(self, rng: np.random.Generator, count: int, length: int) -> Sequences:
        longest = self.size_for(length)
        sizes = np.full(count, longest)
        if self.min_length is not None:
            sizes = rng.integers(max(self.min_length, self.smallest), longest, size=count, endpoint=True)
        *inputs, output = self.parts(rng, sizes, longest)
        sep, end = ((np.full((count, 1), i), None) for i in (self.vocab.sep, self.vocab.end or 0))
        symbols = [(values.astype(np.int32) + np.int32(self.first), keep) for values, keep in (*inputs, output)]
        before = [part for given in symbols[:-1] for part in (given, sep)]
        tokens, scored = _pack(before, [symbols[-1]] + [end] * self.end, count, length)
        return Sequences(tokens, scored, scored.copy())

    def partners(self, row: np.ndarray) -> list[tuple[int, int]]:
        """A symbol of the inputs and its place in the output; of equal symbols the first of `origins` comes first."""
        tokens = row.tolist()
        start = np.flatnonzero(row == self.vocab.sep)[self.inputs - 1] + 1  # of the output
        waiting: dict[int, list[int]] = {}
        for t in self.origins(tokens, [t for t in range(start) if tokens[t] >= self.first]):
            waiting.setdefault(tokens[t], []).append(t)
        return [(waiting[tokens[t]].pop(0), t) for t in range(start, len(tokens)) if waiting.get(tokens[t])]

    def origins(self, tokens: list[int], positions: list[int]) -> list[int]:
        """The `positions` of input symbols that the output can come from, in the order in which it takes equal ones."""
        return positions

    def contents(self, rng: np.random.Generator, sizes: np.ndarray, longest: int) -> Piece:
        """Uniform symbols as uint16, `sizes` of them in each sequence."""
        values = rng.integers(0, self.symbols, size=(len(sizes), longest), dtype=np.uint16)
        return values, None if self.min_length is None else np.arange(longest) < sizes[:, None]

    def solve(self, tokens: np.ndarray, masked: np.ndarray) -> np.ndarray:
        solved = np.where(masked, Vocab.mask, tokens)
        for row in solved:
            seps = np.flatnonzero(row == self.vocab.sep)[: self.inputs].tolist()
            starts = [0, *(sep + 1 for sep in seps)]
            inputs = [row[start:sep].tolist() for start, sep in zip(starts, seps, strict=False)]
            answer = np.array(self.answer(inputs) + [self.vocab.end] * self.end, np.int64)
            output = row[starts[-1] : starts[-1] + len(answer)]
            np.copyto(output, answer, where=output == Vocab.mask)
        return solved


def _pack(before: list[Piece], output: list[Piece], count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Writes the parts of each sequence side by side from the left: tokens (B, N), and where the output parts lie."""
    tokens = np.zeros((count, length), np.int64)
    scored = np.zeros((count, length), bool)
    parts = before + output
    width = sum(values.shape[1] for values, _ in parts)
    symbols = np.concatenate([values for values, _ in parts], axis=1)
    first_output = sum(values.shape[1] for values, _ in before)
    if all(keep is None for _, keep in parts):
        tokens[:, :width] = symbols
        scored[:, first_output:width] = True
        return tokens, scored
    keep = np.concatenate([np.ones(v.shape, bool) if k is None else k for v, k in parts], axis=1)
    ends = keep.sum(axis=1)[:, None]
    starts = keep[:, :first_output].sum(axis=1)[:, None]
    position = np.arange(length)
    tokens[position < ends] = symbols[keep]  # one by one on both sides, so the order within a sequence is kept
    np.logical_and(position >= starts, position < ends, out=scored)
    return tokens, scored


def _first_seen(values: np.ndarray, keep: np.ndarray | None) -> np.ndarray:
    """Marks the first occurrence of each symbol in each sequence of `values` (B, M)."""
    order = np.argsort(values, axis=1, kind="stable")  # stable: of equal symbols the earliest comes first
    ordered = np.take_along_axis(values, order, axis=1)
    first = np.ones(values.shape, bool)
    np.not_equal(ordered[:, 1:], ordered[:, :-1], out=first[:, 1:])
    result = np.empty(values.shape, bool)
    np.put_along_axis(result, order, first, axis=1)
    return result if keep is None else result & keep  # what does not exist stands behind all that does


@register
@dataclass(frozen=True)
class Identity(TaskRule):
    """`x SEP x`: copy."""

    name: ClassVar[str] = "identity"

    def parts(self, rng, sizes, longest):
        x = self.contents(rng, sizes, longest)
        return [x, x]

    def answer(self, inputs):
        return inputs[0]


@register
@dataclass(frozen=True)
class Reverse(TaskRule):
    """`x SEP x backwards`."""

    name: ClassVar[str] = "reverse"

    def parts(self, rng, sizes, longest):
        values, keep = self.contents(rng, sizes, longest)
        return [(values, keep), (values[:, ::-1], None if keep is None else keep[:, ::-1])]

    def answer(self, inputs):
        return inputs[0][::-1]

    def origins(self, tokens, positions):
        return positions[::-1]


@register
@dataclass(frozen=True)
class Sort(TaskRule):
    """`x SEP x in ascending order`, duplicates kept."""

    name: ClassVar[str] = "sort"

    def parts(self, rng, sizes, longest):
        values, keep = self.contents(rng, sizes, longest)
        if keep is not None:  # what does not exist sorts behind everything, and so stays outside `keep`
            values = np.where(keep, values, np.iinfo(values.dtype).max)
        return [(values, keep), (np.sort(values, axis=1), keep)]

    def answer(self, inputs):
        return sorted(inputs[0])


@register
@dataclass(frozen=True)
class SetTask(TaskRule):
    """`x SEP the different symbols of x`, in the order of their first appearance."""

    name: ClassVar[str] = "set"

    def longest_output(self, size):
        return min(size, self.symbols)

    def parts(self, rng, sizes, longest):
        values, keep = self.contents(rng, sizes, longest)
        return [(values, keep), (values, _first_seen(values, keep))]

    def answer(self, inputs):
        return list(dict.fromkeys(inputs[0]))


@register
@dataclass(frozen=True)
class Union(TaskRule):
    """`a SEP b SEP the different symbols of a and b`, in the order of their first appearance.

    The content is a and b together, halved between them; a has the odd one.
    """

    name: ClassVar[str] = "union"
    inputs: ClassVar[int] = 2
    smallest: ClassVar[int] = 2

    def longest_output(self, size):
        return min(size, self.symbols)

    def parts(self, rng, sizes, longest):
        values, keep = self.contents(rng, sizes, longest)
        seen_first = _first_seen(values, keep)
        if keep is None:
            half = longest - longest // 2
            return [(values[:, :half], None), (values[:, half:], None), (values, seen_first)]
        in_a = np.arange(longest) < (sizes - sizes // 2)[:, None]
        return [(values, keep & in_a), (values, keep & ~in_a), (values, seen_first)]

    def answer(self, inputs):
        return list(dict.fromkeys(inputs[0] + inputs[1]))


@register
@dataclass(frozen=True)
class Delete(TaskRule):
    """`x SEP t SEP x without the first t`.

    In the papers t is any symbol. It is absent from x in 53 % of the sequences at their sizes, which makes those plain
    copies: `hit=any`. By default t is the symbol at a random position of x, so there is always something to delete.
    """

    name: ClassVar[str] = "delete"
    inputs: ClassVar[int] = 2
    hit: str = parameter(
        "present", "the symbol to delete is one of x (present), or any symbol (any)", choices=("present", "any")
    )

    def extra(self, size):
        return 1

    def longest_output(self, size):
        return size - 1 if self.hit == "present" else size

    def parts(self, rng, sizes, longest):
        values, keep = self.contents(rng, sizes, longest)
        if self.hit == "present":
            target = np.take_along_axis(values, below(rng, sizes)[:, None], axis=1)
        else:
            target = rng.integers(0, self.symbols, size=(len(sizes), 1), dtype=values.dtype)
        found = values == target
        if keep is not None:
            found &= keep
        rest = np.ones(values.shape, bool) if keep is None else keep.copy()
        rest[np.arange(len(sizes)), found.argmax(axis=1)] ^= found.any(axis=1)
        return [(values, keep), (target, None), (values, rest)]

    def answer(self, inputs):
        x, (target,) = list(inputs[0]), inputs[1]
        if target in x:
            x.remove(target)
        return x

    def origins(self, tokens, positions):
        *x, target = positions
        removed = next((t for t in x if tokens[t] == tokens[target]), None)
        return [t for t in x if t != removed]


@register
@dataclass(frozen=True)
class Stack(TaskRule):
    """`operations SEP content of the stack`, from top to bottom; an operation pushes a symbol or is POP.

    A push takes a symbol that is not on the stack. The first two thirds of the operations push with probability 0.75,
    the rest pop with 0.75; with fewer than two items one is pushed, and the last operation pops if it can leave one.
    """

    name: ClassVar[str] = "stack"
    specials: ClassVar[tuple[str, ...]] = ("POP",)

    def __post_init__(self):
        super().__post_init__()
        if self.symbols < 2:
            raise ValueError(f"stack.symbols must be a whole number of at least 2, got {self.symbols}")

    def longest_output(self, size):
        return min(size if size < 3 else size - 2, self.symbols)

    def parts(self, rng, sizes, longest):
        count, total = len(sizes), self.symbols
        step = np.arange(longest)[:, None]
        exists, is_last = step < sizes, step == sizes - 1
        grows = step < 2 * sizes // 3
        wish = bernoulli(rng, 0.75, (longest, count)) == grows
        choice = rng.random((longest, count))
        # Each row of `items` holds all symbols: those on the stack, bottom first, then the free ones in any order.
        items = np.tile(np.arange(total, dtype=np.int32), count)
        row, size = np.arange(count) * total, np.zeros(count, np.int64)
        operations = np.empty((longest, count), np.int32)
        for t in range(longest):
            few = size < 2
            push = (wish[t] & ~is_last[t] & (size < total)) | few
            top = row + size - ~push
            free = np.where(push, top + (choice[t] * (total - size)).astype(np.int64), top)
            moved = items[free]
            items[free] = items[top]
            items[top] = moved
            operations[t] = np.where(push, moved, -1)
            size += (push.view(np.int8) * np.int8(2) - np.int8(1)) * exists[t]
        widest = max(map(self.longest_output, range(1, longest + 1)))  # three operations leave less than two
        depth = size[:, None] - 1 - np.arange(widest)
        output = items.reshape(count, total)[np.arange(count)[:, None], depth]
        return [(operations.T, None if self.min_length is None else exists.T), (output, depth >= 0)]

    def answer(self, inputs):
        stack: list[int] = []
        for operation in inputs[0]:
            if operation == self.vocab.pop:
                stack.pop()
            else:
                stack.append(operation)
        return stack[::-1]

    def origins(self, tokens, positions):
        return positions[::-1]
