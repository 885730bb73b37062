"""WW: a string and its exact copy."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from vitwarm.procedural.registry import register
from vitwarm.procedural.rule import Rule, Sequences, Vocab, parameter

__all__ = ["WW"]


@register
@dataclass(frozen=True)
class WW(Rule):
    """`w w`: a random string, then the same string. One pair fills the sequence; an odd length ends in one PAD.

    With `packed` the sequence holds several pairs, `w w SEP v v SEP ...`, with lengths uniform from `shortest` to
    `longest` as in the configurations of the ViT warm-up (arXiv 2511.13945): a pair is written as long as the shortest
    one fits, its longest possible length bounded by what is left. How the paper packs is not public; SEP makes the
    pairs readable, so that every copy is determined.

    The paper hides half of the first string and shows the copy (`score=first`); hiding the copy, the default, is
    the same task in the mirror and also suits a model that reads from the left.
    """

    name: ClassVar[str] = "ww"
    symbols: int = parameter(64, "content symbols, drawn uniformly", low=1, high=60000)
    packed: bool = parameter(False, "several pairs a sequence, each closed by SEP")
    shortest: int = parameter(3, "packed: fewest symbols in w", low=1)
    longest: int = parameter(32, "packed: most symbols in w", low=1)
    score: str = parameter("copy", "eligible tokens: the copy, or the first string", choices=("copy", "first"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.longest < self.shortest:
            raise ValueError(f"ww.longest must be at least ww.shortest, {self.shortest}, got {self.longest}")

    @cached_property
    def vocab(self) -> Vocab:
        return Vocab.of(("SEP",) if self.packed else (), map(str, range(self.symbols)))

    def length_of(self, size: int) -> int:
        return 2 * size + self.packed

    def partners(self, row: np.ndarray) -> list[tuple[int, int]]:
        """A symbol of the first string and its copy."""
        pairs: list[tuple[int, int]] = []
        start = 0
        for stop in self._stops(row):
            half = (stop - start) // 2
            pairs += [(start + i, start + half + i) for i in range(half)]
            start = stop + 1
        return pairs

    def _stops(self, row: np.ndarray) -> list[int]:
        """Where each pair of a sequence ends."""
        if self.packed:
            return np.flatnonzero(row == self.vocab.sep).tolist()
        return [int(np.count_nonzero(row != Vocab.pad))]

    def check_length(self, length: int) -> None:
        shortest = self.length_of(self.shortest if self.packed else 1)
        if length < shortest:
            raise ValueError(f"ww: sequences of {length} tokens are too short for one pair, which needs {shortest}")

    def draw(self, rng: np.random.Generator, count: int, length: int) -> Sequences:
        first = self.vocab.size - self.symbols
        content = rng.integers(first, self.vocab.size, size=(count, length), dtype=np.int32)
        start, size = self._pairs(rng, count, length)
        offset = np.arange(length) - start
        is_copy = (offset >= size) & (offset < 2 * size)
        is_first = (offset >= 0) & (offset < size)
        source = np.arange(length) - np.where(is_copy, size, 0)
        tokens = np.take_along_axis(content, source, axis=1).astype(np.int64)
        tokens[~is_first & ~is_copy] = Vocab.pad
        if self.packed:
            tokens[(offset == 2 * size) & (size > 0)] = self.vocab.ids["SEP"]
        scored = is_copy if self.score == "copy" else is_first
        return Sequences(tokens, scored, scored.copy())

    def _pairs(self, rng: np.random.Generator, count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the pair of each position starts and how long its w is (0 behind the last pair), (B, N) each."""
        if not self.packed:
            return np.zeros((count, length), np.int64), np.full((count, length), length // 2)
        starts, sizes = np.zeros((count, length), np.int64), np.zeros((count, length + 1), np.int64)
        row, at = np.arange(count), np.zeros(count, np.int64)
        while True:
            most = np.minimum(min(self.longest, length), (length - at - 1) // 2)
            fits = most >= self.shortest
            if not fits.any():
                break
            size = np.where(fits, rng.integers(self.shortest, np.maximum(most, self.shortest), endpoint=True), 0)
            sizes[row, at] = size  # at the first token of each pair; 0 behind the last one
            at += np.where(fits, 2 * size + 1, 0)
        np.multiply(np.arange(length), sizes[:, :-1] > 0, out=starts)
        starts[row[at < length], at[at < length]] = at[at < length]
        np.maximum.accumulate(starts, axis=1, out=starts)
        return starts, np.take_along_axis(sizes, starts, axis=1)

    def solve(self, tokens: np.ndarray, masked: np.ndarray) -> np.ndarray:
        solved = np.where(masked, Vocab.mask, tokens)
        for row in solved:
            start = 0
            for stop in self._stops(row):
                first, copy = np.split(row[start:stop], 2)
                first[:], copy[:] = np.maximum(first, copy), np.maximum(first, copy)  # MASK is below every symbol
                start = stop + 1
        return solved
