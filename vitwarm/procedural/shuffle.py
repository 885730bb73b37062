"""k-Dyck Shuffle: brackets of k types that balance type by type, free to cross one another."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vitwarm.procedural.brackets import BracketRule, depth_before
from vitwarm.procedural.registry import register
from vitwarm.procedural.rule import Vocab, parameter

__all__ = ["DyckShuffle"]


@register
@dataclass(frozen=True)
class DyckShuffle(BracketRule):
    """Brackets that close in any order: depths walk as in `dyck`, but a closer may close any open bracket.

    The defaults follow the ViT warm-up (arXiv 2511.13945): a random open instance, no depth limit, closed at the end.
    The language-model papers (arXiv 2601.21725, 2505.22308) close a random open type under `max_depth=16` and
    `p_open=0.5`, and cut rows where they end: `close=type max_depth=16 p_open=0.5 balanced=false`.

    With all closers hidden, a closer could close any bracket opened since the depth was last 0. It is determined where
    these are all of one type.
    """

    name: ClassVar[str] = "dyck_shuffle"
    close: str = parameter(
        "instance",
        "a closer closes a random open bracket (instance), or one of a random open type",
        choices=("instance", "type"),
    )

    def _write(self, rng: np.random.Generator, depth: np.ndarray, opens: np.ndarray) -> np.ndarray:
        types = np.ascontiguousarray(self._types(rng, depth.shape).T)
        write = self._close_instances if self.close == "instance" else self._close_types
        write(rng, np.ascontiguousarray(depth_before(depth).T), np.ascontiguousarray(opens.T), types)
        symbols = np.ascontiguousarray(types.T)
        symbols += np.uint16(2)
        symbols += ~opens * np.uint16(self.k)
        return symbols

    # Both writers walk over positions t with all rows at once. They take (N, B) arrays: the depth before each position,
    # where openers are, and types, in which they replace the draws at closers by the type that is closed.

    def _close_instances(self, rng, depth: np.ndarray, opens: np.ndarray, types: np.ndarray) -> None:
        length, count = depth.shape
        # The open brackets of a row fill slots 0 .. depth - 1. An opener puts its type into slot `depth`. A closer
        # takes the type out of a random slot, into which the last one moves. An opener also takes and moves its own
        # slot, and a closer puts something into the free slot `depth`, where nobody reads it: one code does both.
        depth = depth.astype(np.int64)
        place = np.maximum(rng.random(types.shape), opens)  # 1 at openers: their own slot
        put = depth * count + np.arange(count)
        take = (place * depth).astype(np.int64) * count + np.arange(count)
        last = put - ~opens * count
        held = np.zeros((int(depth.max(initial=0)) + 1) * count, types.dtype)
        for t in range(length):
            held[put[t]] = types[t]
            held.take(take[t], out=types[t], mode="clip")
            held[take[t]] = held.take(last[t])

    def _close_types(self, rng, depth: np.ndarray, opens: np.ndarray, types: np.ndarray) -> None:
        length, count = depth.shape
        by_row, by_list = np.arange(count) * self.k, np.arange(count) * (self.k + 1)
        open_count = np.zeros(count * self.k, np.int32)  # [row, type]
        open_types = np.zeros(count * (self.k + 1), types.dtype)  # [row, i]: the types that are open, in any order
        how_many = np.zeros(count, np.int64)  # of them, in each row
        change = opens.view(np.int8) * np.int32(2) - np.int32(1)
        choice = np.maximum(rng.random(types.shape), opens)  # 1 at openers: the place behind the list
        for t in range(length):
            behind = by_list + how_many
            open_types[behind] = types[t]
            pick = (choice[t] * how_many).astype(np.int64) + by_list
            open_types.take(pick, out=types[t], mode="clip")
            cell = by_row + types[t]
            now_open = open_count.take(cell) + change[t]
            open_count[cell] = now_open
            gone = now_open == 0  # leaves its place to the last of the list
            open_types[pick] = np.where(gone, open_types.take(behind - 1, mode="clip"), types[t])
            how_many += now_open == change[t]  # the first of its type: the place behind the list joins it
            how_many -= gone

    def _determined(self, symbols: np.ndarray, before: np.ndarray, opens: np.ndarray, closes: np.ndarray) -> np.ndarray:
        count, length = symbols.shape
        position = np.arange(length, dtype=np.int32)
        start = np.maximum.accumulate(position * (before == 0), axis=1)  # of the walk since depth 0: an opener
        first = symbols.reshape(-1)[start + np.arange(count)[:, None] * length]
        after_other = np.maximum.accumulate((position + 1) * (opens & (symbols != first)), axis=1)
        return closes & (after_other <= start)

    def solve(self, tokens: np.ndarray, masked: np.ndarray) -> np.ndarray:
        """Completes each row to a legal one; the answers are right where they are determined.

        A visible closer takes the latest open bracket of its type. The brackets that are left belong to the hidden
        closers, first opened to first hidden: if any assignment is legal, this one is.
        """
        if self.score == "all":
            return np.where(masked, Vocab.mask, tokens)
        opens, closes = self._kinds(tokens, masked)
        solved = np.where(masked, Vocab.mask, tokens)
        for row, is_open, is_close in zip(solved, opens & ~masked, closes & ~masked, strict=True):
            free: dict[int, list[int]] = {}
            for t in np.flatnonzero(is_open | is_close).tolist():
                if is_open[t]:
                    free.setdefault(int(row[t]), []).append(t)
                else:
                    free[int(row[t]) - self.k].pop()
            unclosed = sorted(t for stack in free.values() for t in stack)
            hidden = np.flatnonzero(row == Vocab.mask)
            row[hidden] = row[unclosed[: len(hidden)]] + self.k
        return solved
