"""k-Dyck: well-nested brackets of k types, drawn without a loop over positions."""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from vitwarm.procedural.registry import register
from vitwarm.procedural.rule import Rule, Sequences, Vocab, parameter
from vitwarm.procedural.sampling import bernoulli

__all__ = ["BracketRule", "Dyck", "depth_before", "depth_path", "matching"]


def depth_path(
    rng: np.random.Generator, count: int, length: int, p_open: float, max_depth: int | None, balanced: bool
) -> np.ndarray:
    """Open brackets after each position, as the papers' generators walk: (count, length) int16 or int32.

    A walk at depth 0 opens; at `max_depth` it closes; otherwise it opens with probability `p_open`. With `balanced`
    it starts closing as soon as the remaining positions are just enough to close all, which needs an even length.

    Without a depth limit this is closed form. Let S be the free +-1 walk. Every time S would pass below its running
    minimum m <= 0, the forced opening turns the step down into a step up, which lifts the walk by 2: the reflected
    depth is S + 2 * ceil(-m / 2). The forced tail is a minimum with the positions that remain, because once the walk
    touches that line it can not leave it.
    """
    dtype = np.int16 if length < 2**15 else np.int32
    up = bernoulli(rng, p_open, (count, length))
    if max_depth is None or max_depth >= length:
        depth = np.cumsum(up.view(np.int8) * np.int8(2) - np.int8(1), axis=1, dtype=dtype)
        lowest = np.minimum.accumulate(depth, axis=1)
        np.minimum(lowest, 0, out=lowest)
        depth += (1 - lowest) >> 1 << 1
    else:
        depth = _bounded_walk(up, max_depth, dtype)
    if balanced:
        np.minimum(depth, np.arange(length - 1, -1, -1, dtype=dtype), out=depth)
    return depth


def _bounded_walk(up: np.ndarray, max_depth: int, dtype: type) -> np.ndarray:
    """Depths of walks that turn back at 0 and at `max_depth`: four steps at a time, by a table of all of them."""
    count, length = up.shape
    now: np.ndarray = np.broadcast_to(np.arange(max_depth + 1, dtype=dtype), (16, max_depth + 1))
    table: np.ndarray = np.empty(
        (16, max_depth + 1, 4), dtype
    )  # [four steps, first one highest; depth before] -> depths
    for step in range(4):
        rise = (np.arange(16)[:, None] >> 3 - step & 1).astype(bool) & (now < max_depth) | (now == 0)
        table[..., step] = now = now + np.where(rise, dtype(1), dtype(-1))
    table = table.reshape(-1, 4)
    after = np.ascontiguousarray(table[:, 3])
    packed = np.packbits(up, axis=1).T
    rows = np.stack((packed >> 4, packed & 15), axis=1).reshape(2 * len(packed), count) * np.int64(max_depth + 1)
    now = np.zeros(count, dtype)
    for row in rows:
        row += now
        after.take(row, out=now, mode="clip")
    return table.take(np.ascontiguousarray(rows.T), axis=0).reshape(count, 4 * len(rows))[:, :length]


def depth_before(depth: np.ndarray) -> np.ndarray:
    """Open brackets before each position: `depth` moved right by one, starting at 0."""
    before = np.empty_like(depth)
    before[:, 0] = 0
    before[:, 1:] = depth[:, :-1]
    return before


def matching(depth: np.ndarray) -> np.ndarray:
    """Positions grouped so that the bracket pairs of each sequence stand side by side.

    Sorting a sequence stably by the level at which its brackets live (the deeper of the depths before and after) makes
    opener and closer alternate within each level, so that entries 2i and 2i + 1 are a pair. A sequence that is cut off
    while brackets are open has openers without a partner: then a pair is an opener followed by a closer.

    Returns:
        (B, N) int64 positions.
    """
    level = np.maximum(depth, depth_before(depth))
    # NumPy's stable sort is a radix sort for 8 and 16 bits, with half the passes for 8.
    level = level.astype(np.uint8 if level.max(initial=0) < 256 else np.uint16 if depth.dtype == np.int16 else np.int32)
    return np.argsort(level, axis=1, kind="stable")


@dataclass(frozen=True)
class BracketRule(Rule):
    """Base of the bracket rules. Ids: PAD 0, MASK 1, openers 2 .. k+1, closers k+2 .. 2k+1 (closer = opener + k).

    Sequences shorter than N (random lengths, an odd N) are filled up with PAD on the right.
    """

    k: int = parameter(64, "bracket types", low=1, high=30000)
    p_open: float = parameter(0.6, "chance to open where both opening and closing are allowed", low=0.0, high=1.0)
    max_depth: int | None = parameter(None, "most brackets open at once; none: no limit", low=1)
    balanced: bool = parameter(True, "close every bracket before the sequence ends; false: cut it at its length")
    odd: str = parameter(
        "refuse", "a balanced rule refuses an odd sequence length, or its last token is PAD", choices=("refuse", "pad")
    )
    min_length: int | None = parameter(
        None,
        "shortest content: lengths are uniform from here to the sequence length (even "
        "ones, if balanced); none: content fills the sequence",
        low=2,
    )
    score: str = parameter(
        "closers",
        "eligible tokens: closers, or all (then nothing is determined)",
        choices=("closers", "all"),
    )

    @cached_property
    def vocab(self) -> Vocab:
        types = range(self.k)
        return Vocab.of((), [f"({i}" for i in types] + [f"){i}" for i in types])

    def partners(self, row: np.ndarray) -> list[tuple[int, int]]:
        """Opener and closer; brackets of one type pair innermost first."""
        pairs: list[tuple[int, int]] = []
        waiting: dict[int, list[int]] = {}
        for t, token in enumerate(row.tolist()):
            if 2 <= token < 2 + self.k:
                waiting.setdefault(token, []).append(t)
            elif waiting.get(token - self.k):
                pairs.append((waiting[token - self.k].pop(), t))
        return pairs

    def check_length(self, length: int) -> None:
        if self.balanced and length % 2 and self.odd == "refuse":
            raise ValueError(
                f"{self.name}: balanced sequences need an even length, got {length}; "
                "choose an even one, or set odd=pad to end each sequence with one PAD"
            )
        shortest = max(self.min_length or 1, 2 if self.balanced else 1)
        if length < shortest:
            raise ValueError(f"{self.name}: length must be at least the shortest content, {shortest}, got {length}")
        if self.balanced and self.min_length and (self.min_length + 1) // 2 > length // 2:
            raise ValueError(f"{self.name}: no even length from min_length {self.min_length} to {length}")

    def draw(self, rng: np.random.Generator, count: int, length: int) -> Sequences:
        unit = 2 if self.balanced else 1
        full = length // unit * unit
        sizes = np.full(count, full)
        if self.min_length is not None:
            sizes = rng.integers(-(-self.min_length // unit), full // unit, size=count, endpoint=True) * unit
        depth = depth_path(rng, count, full, self.p_open, self.max_depth, self.balanced and self.min_length is None)
        if self.min_length is not None:
            remaining = np.maximum(sizes[:, None] - np.arange(1, full + 1), -1)
            if self.balanced:
                np.minimum(depth, np.maximum(remaining, 0), out=depth, casting="same_kind")
        before = depth_before(depth)
        opens = depth > before
        symbols = self._write(rng, depth, before, opens)
        closes = ~opens
        if self.min_length is not None:
            symbols[remaining < 0] = Vocab.pad
            closes &= remaining >= 0
        tokens = np.zeros((count, length), np.int64)
        tokens[:, :full] = symbols
        scored, determined = np.zeros((count, length), bool), np.zeros((count, length), bool)
        if self.score == "all":
            return Sequences(tokens, tokens != Vocab.pad, determined)
        scored[:, :full] = closes
        determined[:, :full] = self._determined(symbols, before, opens, closes)
        return Sequences(tokens, scored, determined)

    @abstractmethod
    def _write(self, rng: np.random.Generator, depth: np.ndarray, before: np.ndarray, opens: np.ndarray) -> np.ndarray:
        """Token ids, (B, N) uint16, for sequences of which the depths after and before each position are known."""

    @abstractmethod
    def _determined(self, symbols: np.ndarray, before: np.ndarray, opens: np.ndarray, closes: np.ndarray) -> np.ndarray:
        """Which closers follow from the openers alone, (B, N) bool; `before` is the depth before each position."""

    def _types(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Uniform bracket types. All ids fit into 16 bits, the width in which NumPy draws small integers fastest."""
        return rng.integers(0, self.k, size=shape, dtype=np.uint16)

    def _kinds(self, tokens: np.ndarray, masked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Openers and closers (each (B, N) bool) of sequences of which only closers are hidden."""
        visible_close = tokens >= 2 + self.k
        return ~masked & (tokens >= 2) & ~visible_close, masked | visible_close


@register
@dataclass(frozen=True)
class Dyck(BracketRule):
    """Well-nested brackets: every closer closes the bracket that was opened last.

    The default of the ViT warm-up (arXiv 2511.13945): 64 types, opening with probability 0.6, no depth limit, closed
    at the end. Only closers are hidden, so each one follows from the openers in sight: an oracle is always right.
    """

    name: ClassVar[str] = "dyck"

    def _write(self, rng: np.random.Generator, depth: np.ndarray, before: np.ndarray, opens: np.ndarray) -> np.ndarray:
        count, length = depth.shape
        if depth[:, -1:].any():  # cut off with brackets open: not all openers have a partner
            types = self._types(rng, (count, length))
            return copy_types(types, depth, opens) + np.where(opens, 2, 2 + self.k).astype(np.uint16)
        symbols = np.empty((count, length), np.uint16)
        pairs = self._types(rng, (count, length // 2))
        rows = max(1, 2**16 // length)  # as many sequences at a time as keep the working set in cache
        for start in range(0, count, rows):
            part = slice(start, start + rows)
            order = matching(depth[part])
            order += np.arange(len(order))[:, None] * length
            values = np.empty((*pairs[part].shape, 2), np.uint16)
            np.add(pairs[part], 2, out=values[..., 0])
            np.add(pairs[part], 2 + self.k, out=values[..., 1])
            symbols[part].reshape(-1)[order.reshape(-1)] = values.reshape(-1)
        return symbols

    def _determined(self, symbols: np.ndarray, before: np.ndarray, opens: np.ndarray, closes: np.ndarray) -> np.ndarray:
        return closes

    def solve(self, tokens: np.ndarray, masked: np.ndarray) -> np.ndarray:
        if self.score == "all":  # a hidden opener could be any: nothing is known
            return np.where(masked, Vocab.mask, tokens)
        opens, closes = self._kinds(tokens, masked)
        depth = np.cumsum(opens.astype(np.int32) - closes, axis=1)
        types = copy_types(np.where(opens, tokens - 2, 0), depth, opens | ~closes)
        return np.where(masked, types + 2 + self.k, tokens)


def copy_types(types: np.ndarray, depth: np.ndarray, opens: np.ndarray) -> np.ndarray:
    """`types` (B, N) with each closer's type replaced by that of the bracket it closes; sequences may end
    unbalanced.
    """
    order = matching(depth)
    ordered = np.take_along_axis(types, order, axis=1)
    is_open = np.take_along_axis(opens, order, axis=1)
    ordered[:, 1:] = np.where(is_open[:, 1:], ordered[:, 1:], ordered[:, :-1])
    result = np.empty_like(types)
    np.put_along_axis(result, order, ordered, axis=1)
    return result
