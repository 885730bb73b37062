"""Automata against OEIS, cellpylib, and a plain loop."""

import cellpylib
import numpy as np
import pytest
from scipy.stats import chisquare

from vitwarm.procedural import keyed_rng, make_rule
from vitwarm.procedural.eca import evolve

A006978 = [1, 3, 7, 13, 31, 49, 115, 215, 509, 775, 1805, 3359, 7985, 12659, 29655, 54909]  # rule 110 from one cell
A118110 = [1, 7, 21, 107, 273, 1911, 5189, 28123]  # rule 150
A118108 = [1, 7, 17, 119, 273, 1911, 4369, 30583]  # rule 54


def picture(tokens, width, block=1):
    """(B, states, width) cells of rows written without a remainder."""
    values = (tokens - 2)[..., None] >> np.arange(block)[::-1] & 1
    return values.reshape(len(tokens), -1, width)


@pytest.mark.parametrize(("rule", "numbers"), [(110, A006978), (150, A118110), (54, A118108)])
def test_oeis(rule, numbers):
    states, width = len(numbers), 4 * len(numbers) + 1
    rows = make_rule("eca", number=rule, width=width, start="single").sample(keyed_rng(0), 3, states * width)
    cells = picture(rows.tokens, width)[1]
    middle = width // 2
    for n, (state, number) in enumerate(zip(cells, numbers, strict=True)):
        right = 0 if rule == 110 else n  # rule 110 grows to the left only
        bits = "".join(map(str, state[middle - n : middle + right + 1]))
        assert int(bits, 2) == number
        assert state.sum() == number.bit_count()


def test_all_rules_equal_cellpylib():
    start = keyed_rng(0, "start").integers(0, 2, size=13)
    for rule in range(256):
        theirs = cellpylib.evolve(start[None], timesteps=5, apply_rule=lambda n, c, t, r=rule: cellpylib.nks_rule(n, r))
        ring = sum(0b111 * int(cell) << 3 * place for place, cell in enumerate(start))  # three worlds alike
        for state in theirs:
            assert [ring >> 3 * place & 0b111 for place in range(13)] == [0b111 * int(cell) for cell in state]
            ring = evolve(ring, rule, width=13, worlds=3)


def next_state(state, rule):
    n = len(state)
    return [rule >> (4 * state[i - 1] + 2 * state[i] + state[(i + 1) % n]) & 1 for i in range(n)]


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("width", [4, 8, 100])
def test_rows_evolve_and_everything_is_determined(width, block):
    rule = make_rule("eca", number=30, width=width, block=block)
    row, states = width // block, 6
    rows = rule.sample(keyed_rng(1, width, block), 11, states * row + row // 2)  # eleven: not a multiple of eight
    used = states * row
    cells = picture(rows.tokens[:, :used], width, block)
    for world in cells.tolist():
        for before, after in zip(world, world[1:], strict=False):
            assert after == next_state(before, 30)
    assert (rows.tokens[:, used:] == 0).all() and not rows.scored[:, used:].any()
    assert not rows.scored[:, :row].any() and rows.scored[:, row:used].all()
    assert (rows.determined == rows.scored).all()


def test_without_a_width_the_picture_is_square():
    rows = make_rule("eca").sample(keyed_rng(2), 3, 196)
    for world in picture(rows.tokens, 14).tolist():
        assert world[1] == next_state(world[0], 110) and len(world) == 14
    assert (make_rule("eca", block=2).sample(keyed_rng(2), 2, 18).tokens[:, 16:] == 0).all()


def test_windows_show_part_of_a_ring_and_know_their_light_cone():
    rule = make_rule("eca", width=40, window=20, burn_in=3)
    rows = rule.sample(keyed_rng(3), 200, 20 * 12)
    cells = picture(rows.tokens, 20)
    sides_follow = []
    for world in cells.tolist():
        for before, after in zip(world, world[1:], strict=False):
            assert after[1:-1] == next_state(before, 110)[1:-1]
            sides_follow.append(after[0] == next_state(before, 110)[0])
    assert not all(sides_follow)  # the neighbour outside is not the one across the window
    determined = rows.determined[0].reshape(12, 20)
    assert determined.sum(axis=1).tolist() == [0, *range(18, 0, -2), 0, 0]
    assert make_rule("eca", width=20, window=20).sample(keyed_rng(3), 2, 100).determined[:, 20:].all()


def test_window_solver_uses_what_is_in_sight():
    rule = make_rule("eca", width=30, window=10)
    rows = rule.sample(keyed_rng(4), 50, 100)
    hidden = np.zeros((50, 100), bool)
    hidden[:, 50:60] = True  # one state, its predecessor in sight: all but the two sides follow
    solved = rule.solve(np.where(hidden, 1, rows.tokens), hidden)
    assert (solved[:, 51:59] == rows.tokens[:, 51:59]).all()
    assert (solved[:, [50, 59]] == 1).all()


@pytest.mark.parametrize("density", [0.5, 0.2])
def test_first_states_have_their_law(density):
    tokens = make_rule("eca", width=4, density=density).sample(keyed_rng(5, str(density)), 20_000, 8).tokens
    values = (tokens[:, :4] - 2) @ [8, 4, 2, 1]
    ones = np.array([value.bit_count() for value in range(16)])
    law = density**ones * (1 - density) ** (4 - ones)
    assert chisquare(np.bincount(values, minlength=16), law * 20_000).pvalue > 1e-4


def test_block_symbols_are_named_by_their_bits():
    names = make_rule("eca", block=3).vocab.names
    assert names == ("PAD", "MASK", "b000", "b001", "b010", "b011", "b100", "b101", "b110", "b111")
    bits = make_rule("eca", width=12).sample(keyed_rng(6), 5, 48).tokens
    blocks = make_rule("eca", width=12, block=3).sample(keyed_rng(6), 5, 16).tokens
    assert (picture(bits, 12) == picture(blocks, 12, 3)).all()


@pytest.mark.parametrize(
    ("options", "length", "message"),
    [
        ({"width": 10, "window": 11}, 100, "window"),
        ({"window": 3}, 100, "window"),
        ({"width": 10, "block": 4}, 100, "block"),
        ({"width": 60}, 64, "two states"),
        ({}, 3, "two states"),
        ({"number": 256}, 64, "number"),
    ],
)
def test_impossible_automata_are_refused(options, length, message):
    with pytest.raises(ValueError, match=message):
        make_rule("eca", **options).sample(keyed_rng(0), 1, length)
