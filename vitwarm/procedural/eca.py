"""Elementary cellular automata: each cell is a function of the three cells above it."""

from dataclasses import dataclass
from functools import cache, cached_property, reduce
from math import isqrt
from operator import and_, xor
from typing import ClassVar

import numpy as np

from vitwarm.procedural.registry import register
from vitwarm.procedural.rule import Rule, Sequences, Vocab, parameter
from vitwarm.procedural.sampling import bernoulli

__all__ = ["Eca", "evolve"]


def evolve(cells: int, number: int, width: int, worlds: int) -> int:
    """The next state of a periodic automaton, in many worlds at once.

    Python's integers are as long as needed, which makes one a register for all cells. For few cells, as in a
    warm-up, it is twice as fast as an array, whose calls cost more than their work.

    Args:
        cells: cell c of world w is bit c * worlds + w.
        number: bit 4l + 2c + r is the next state of a cell c with left neighbour l and right neighbour r (Wolfram's).
        width: cells on the ring.
        worlds: rings side by side.
    """
    around = (width - 1) * worlds
    every = (1 << around + worlds) - 1
    neighbours = (cells >> worlds | cells << around & every, cells, (cells << worlds | cells >> around) & every)
    products = [reduce(and_, [neighbours[place] for place in term]) if term else every for term in _terms(number)]
    return reduce(xor, products, 0)


@cache
def _terms(number: int) -> list[list[int]]:
    """The rule as a sum modulo 2 of products (its algebraic normal form): of right (0), centre (1), left (2)."""
    inside = [number >> state & 1 for state in range(8)]
    for place in range(3):
        for state in range(8):
            if state >> place & 1:
                inside[state] ^= inside[state ^ 1 << place]
    return [[place for place in range(3) if state >> place & 1] for state in range(8) if inside[state]]


@register
@dataclass(frozen=True)
class Eca(Rule):
    """The space-time diagram of an elementary cellular automaton, one state after the other, from the top.

    The first state is random; every later one follows from it and is eligible. The border is periodic. `window` shows
    only part of a wider ring, as in "Intelligence at the Edge of Chaos" (width 1000, window 100, 60 states), where
    what happens outside makes the sides of the diagram unpredictable: there only cells that no outside cell can have
    reached are determined. Sequences hold as many whole states as fit, then PAD.

    Not in the published code of arXiv 2601.21725; a token of `block` bits as in the ViT experiments with automata.
    """

    name: ClassVar[str] = "eca"
    number: int = parameter(110, "Wolfram's number of the automaton", low=0, high=255)
    width: int | None = parameter(
        None, "cells on the ring; none: makes the diagram square in tokens (14 x 14 at 196)", low=1
    )
    window: int | None = parameter(None, "cells in sight, of the ring's; none: all", low=1)
    block: int = parameter(1, "neighbouring cells that make one symbol, the leftmost the highest bit", low=1, high=12)
    start: str = parameter(
        "random", "first state: every cell random, or a single 1 in the middle", choices=("random", "single")
    )
    density: float = parameter(0.5, "random start: chance that a cell is 1", low=0.0, high=1.0)
    burn_in: int = parameter(0, "states that pass before the first one in sight", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None and (self.width is None or self.window > self.width):
            raise ValueError(f"eca.window must be none or at most eca.width, {self.width}, got {self.window}")
        shown = self.window or self.width
        if shown is not None and shown % self.block:
            raise ValueError(f"eca.block must divide the {shown} cells in sight, got {self.block}")

    @cached_property
    def vocab(self) -> Vocab:
        return Vocab.of((), (f"b{value:0{self.block}b}" for value in range(2**self.block)))

    def row_tokens(self, length: int) -> int:
        """Tokens that show one state in a sequence of `length` tokens."""
        shown = self.window or self.width
        return isqrt(length) if shown is None else shown // self.block

    def length_of(self, size: int) -> int:
        shown = self.window or self.width
        return size * (size if shown is None else shown // self.block)

    def check_length(self, length: int) -> None:
        if length < 2 * self.row_tokens(length) or length < 4:
            needed = max(4, 2 * self.row_tokens(length))
            raise ValueError(f"eca: sequences of {length} tokens do not hold two states; they need at least {needed}")

    def draw(self, rng: np.random.Generator, count: int, length: int) -> Sequences:
        row = self.row_tokens(length)
        states, shown = length // row, row * self.block
        symbols = self.cells(rng, count, states, self.width or shown, shown)
        if self.block > 1:
            groups = symbols.reshape(count, states * row, self.block)
            symbols = np.zeros((count, states * row), np.uint16)
            for place in range(self.block):
                symbols = symbols << np.uint16(1) | groups[:, :, place]
        symbols += symbols.dtype.type(2)
        tokens = np.empty((count, length), np.int64)
        tokens[:, : states * row] = symbols
        tokens[:, states * row :] = Vocab.pad
        scored = np.zeros((count, length), bool)
        scored[:, row : states * row] = True
        determined = scored.copy()
        if self.window is not None and self.window != self.width:
            sure = self._sure(states, shown).reshape(states, row, self.block).all(axis=2).reshape(-1)
            determined[:, row : states * row] = sure[row:]
        return Sequences(tokens, scored, determined)

    def cells(self, rng: np.random.Generator, count: int, states: int, width: int, shown: int) -> np.ndarray:
        """(count, states * shown) uint8 of 0 and 1; all sequences evolve side by side, eight to a byte."""
        lanes = -(-count // 8)
        if self.start == "single":
            now = np.zeros((width, lanes), np.uint8)
            now[width // 2] = 255
        elif self.density == 0.5:
            now = rng.integers(0, 256, size=(width, lanes), dtype=np.uint8)
        else:
            now = np.packbits(bernoulli(rng, self.density, (width, lanes * 8)), axis=1)
        # A random ring looks the same from everywhere, so a window at a fixed place is a window at a random one.
        sight = slice((width - shown) // 2 * lanes, ((width - shown) // 2 + shown) * lanes)
        ring = int.from_bytes(now.tobytes(), "little")
        for _ in range(self.burn_in):
            ring = evolve(ring, self.number, width, lanes * 8)
        history = [ring]
        while len(history) < states:
            history.append(evolve(history[-1], self.number, width, lanes * 8))
        shots = b"".join(ring.to_bytes(width * lanes, "little")[sight] for ring in history)
        seen = np.frombuffer(shots, np.uint8).reshape(states * shown, lanes)
        by_lane = np.ascontiguousarray(seen.T)  # turned while eight sequences are still a byte
        bits = by_lane[:, None] >> np.arange(7, -1, -1, dtype=np.uint8)[:, None]
        bits &= 1
        return bits.reshape(lanes * 8, states * shown)[:count]

    def _sure(self, states: int, shown: int) -> np.ndarray:
        """(states, shown) bool: cells of a window that follow from the first state in sight."""
        cell, state = np.arange(shown), np.arange(states)[:, None]
        return (cell >= state) & (cell < shown - state)

    def solve(self, tokens: np.ndarray, masked: np.ndarray) -> np.ndarray:
        """Evolves the known cells of each state into the next; cells that cannot be known come back as MASK."""
        count, length = tokens.shape
        row = self.row_tokens(length)
        states = length // row
        places = np.arange(self.block)[::-1]
        used = np.where(masked, Vocab.mask, tokens)[:, : states * row].reshape(count, states, row, 1)
        bits = ((used - 2) >> places & 1).reshape(count, states, row * self.block)
        known = np.repeat(used[..., 0] != Vocab.mask, self.block, axis=2)
        table = self.number >> np.arange(8) & 1
        for state in range(1, states):
            before, sure = bits[:, state - 1], known[:, state - 1]
            around = 4 * np.roll(before, 1, axis=1) + 2 * before + np.roll(before, -1, axis=1)
            follows = sure & np.roll(sure, 1, axis=1) & np.roll(sure, -1, axis=1)
            if self.window is not None and self.window != self.width:
                follows[:, [0, -1]] = False
            bits[:, state] = np.where(known[:, state], bits[:, state], table[around])
            known[:, state] |= follows
        values = (bits.reshape(used.shape[:3] + (self.block,)) << places).sum(axis=3) + 2
        complete = known.reshape(used.shape[:3] + (self.block,)).all(axis=3)
        answer = np.where(complete, values, Vocab.mask).reshape(count, states * row)
        solved = tokens.astype(np.int64)
        hidden = masked[:, : states * row]
        solved[:, : states * row][hidden] = answer[hidden]
        return solved
