"""k-Dyck Shuffle: brackets of k types that balance type by type, free to cross one another."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vitwarm.procedural.brackets import BracketRule
from vitwarm.procedural.registry import register
from vitwarm.procedural.rule import Vocab, parameter

__all__ = ["DyckShuffle"]

_AHEAD = 48  # positions: few enough for arrays that stay in cache, many enough to pay for the calls


@register
@dataclass(frozen=True)
class DyckShuffle(BracketRule):
    """Brackets that close in any order: depths walk as in `dyck`, but a closer may close any open bracket.

    The defaults follow the ViT warm-up (arXiv 2511.13945): a random open instance, no depth limit, closed at the end.
    The language-model papers (arXiv 2601.21725, 2505.22308) close a random open type under `max_depth=16` and
    `p_open=0.5`, and cut sequences where they end: `close=type max_depth=16 p_open=0.5 balanced=false`.

    With all closers hidden, a closer could close any bracket opened since the depth was last 0. It is determined where
    these are all of one type.
    """

    name: ClassVar[str] = "dyck_shuffle"
    close: str = parameter(
        "instance",
        "a closer closes a random open bracket (instance), or one of a random open type",
        choices=("instance", "type"),
    )

    def _write(self, rng: np.random.Generator, depth: np.ndarray, before: np.ndarray, opens: np.ndarray) -> np.ndarray:
        symbols = self._types(rng, depth.shape)
        close = self._close_instances if self.close == "instance" else self._close_types
        close(rng, before, opens, symbols)
        symbols += np.uint16(2)
        symbols += ~opens * np.uint16(self.k)
        return symbols

    # Both walk over positions with all sequences at once, and replace the draws in `types` at closers by the type
    # that is closed. What can be known beforehand they prepare for `_AHEAD` positions at a time.

    def _close_instances(self, rng, before: np.ndarray, opens: np.ndarray, types: np.ndarray) -> None:
        count, length = before.shape
        # The open brackets of a sequence fill slots 0 .. depth - 1. An opener puts its type into slot `depth`. A closer
        # takes the type out of a random slot, into which the last one moves. An opener also takes and moves its own
        # slot, and a closer puts something into the free slot `depth`, where nobody reads it: one code does both.
        held = np.zeros((int(before.max(initial=0)) + 1) * count, types.dtype)
        for start in range(0, length, _AHEAD):
            part = slice(start, start + _AHEAD)
            slot, opening, symbols = (np.ascontiguousarray(array[:, part].T) for array in (before, opens, types))
            place = np.maximum(rng.random(slot.shape), opening)  # 1 at openers: their own slot
            slot = slot.astype(np.int64)
            put = slot * count + np.arange(count)
            take = (place * slot).astype(np.int64) * count + np.arange(count)
            last = put - ~opening * count
            for symbol, put_at, take_at, last_at in zip(symbols, put, take, last, strict=True):
                held[put_at] = symbol
                held.take(take_at, out=symbol, mode="clip")
                held[take_at] = held.take(last_at)
            types[:, part] = symbols.T

    def _close_types(self, rng, before: np.ndarray, opens: np.ndarray, types: np.ndarray) -> None:
        count, length = before.shape
        by_row, by_list = np.arange(count) * self.k, np.arange(count) * (self.k + 1)
        open_count = np.zeros(count * self.k, np.int64)  # [row, type]
        open_types = np.zeros(count * (self.k + 1), np.int64)  # [row, i]: cells of open_count, of types that are open
        how_many = np.zeros(count, np.int64)  # of them, in each sequence
        behind, none = np.empty(count, np.int64), np.zeros(count, np.int64)
        for start in range(0, length, _AHEAD):
            part = slice(start, start + _AHEAD)
            opening = np.ascontiguousarray(opens[:, part].T)
            choices = np.maximum(rng.random(opening.shape), opening)  # 1 at openers: the place behind the list
            firsts = opening.astype(np.int64)  # open of a type when an opener is its first, a closer its last
            changes = 2 * firsts - 1
            cells = types[:, part].T.astype(np.int64, order="C")
            cells += by_row
            for cell, choice, change, first in zip(cells, choices, changes, firsts, strict=True):
                np.add(by_list, how_many, out=behind)
                open_types[behind] = cell
                pick = (choice * how_many).astype(np.int64)
                pick += by_list
                open_types.take(pick, out=cell, mode="clip")
                now_open = open_count.take(cell)
                now_open += change
                open_count[cell] = now_open
                behind -= 1
                np.copyto(behind, pick, where=now_open != none)
                open_types[pick] = open_types.take(behind, mode="clip")  # the last takes the place of one that is gone
                # The place behind the list joins it, or its last one leaves.
                np.add(how_many, change, out=how_many, where=now_open == first)
            cells -= by_row
            types[:, part] = cells.T

    def _determined(self, symbols: np.ndarray, before: np.ndarray, opens: np.ndarray, closes: np.ndarray) -> np.ndarray:
        count, length = symbols.shape
        determined, position = closes.copy(), np.arange(length, dtype=np.int32)
        rows = max(1, 2**15 // length)  # as many at a time as keep the working set in cache
        for part in (slice(start, start + rows) for start in range(0, count, rows)):
            start = np.maximum.accumulate(
                position * (before[part] == 0), axis=1
            )  # of the walk since depth 0: an opener
            first = symbols[part].reshape(-1).take(start + np.arange(len(start))[:, None] * length)
            after_other = np.maximum.accumulate((position + 1) * (opens[part] & (symbols[part] != first)), axis=1)
            determined[part] &= after_other <= start
        return determined

    def solve(self, tokens: np.ndarray, masked: np.ndarray) -> np.ndarray:
        """Completes each sequence to a legal one; the answers are right where they are determined.

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
