"""Streams: seekable, disjoint, the same for every reader; masks that follow the row."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from vitwarm.procedural import CHUNK, RuleStream, keyed_rng, make_rule, masked_batch
from vitwarm.procedural.sampling import below, bernoulli

DYCK = make_rule("dyck", k=4)


def stream(seed=0, split="train", rule=DYCK, length=16):
    return RuleStream(rule, seed, split, length)


def test_any_chunk_is_reached_without_its_predecessors():
    fresh = stream().chunk(10**12).tokens
    walked = stream()
    walked.chunk(0)
    assert (walked.chunk(10**12).tokens == fresh).all()


def test_rows_are_the_same_however_they_are_read():
    whole = stream().rows(0, 3 * CHUNK)
    assert (whole.tokens == np.concatenate([stream().chunk(c).tokens for c in range(3)])).all()
    reader = stream()
    for start, stop in [(5, 6), (CHUNK - 3, CHUNK + 3), (0, 2 * CHUNK + 1), (CHUNK, 2 * CHUNK)]:
        piece = reader.rows(start, stop)
        for name in ("tokens", "scored", "determined"):
            assert (getattr(piece, name) == getattr(whole, name)[start:stop]).all()
        masked = reader.masked_rows(start, stop, 0.5)
        reference = stream().masked_rows(0, 3 * CHUNK, 0.5)
        assert (masked.inputs == reference.inputs[start:stop]).all()
        assert (masked.masked == reference.masked[start:stop]).all()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda s: replace(s, tokens=s.tokens + 9), "gave tokens 11 to 18"),
        (lambda s: replace(s, tokens=s.tokens - 1), r"gave MASK \(token 1\)"),
        (lambda s: replace(s, tokens=s.tokens.astype(np.int32)), "gave tokens of .* int32, not .* int64"),
        (lambda s: replace(s, scored=s.scored[:, 1:]), r"gave scored of shape \(256, 15\)"),
    ],
)
def test_what_a_rule_must_not_draw_is_refused_with_its_name(monkeypatch, wrong, says):
    draw = type(DYCK).draw
    monkeypatch.setattr(type(DYCK), "draw", lambda *words: wrong(draw(*words)))
    for read in (lambda: stream().rows(3, 5), lambda: stream().masked_rows(0, CHUNK, 0.5)):
        with pytest.raises(ValueError, match=f"^dyck: draw {says}"):
            read()


def test_a_caller_may_change_what_it_was_given():
    reader = stream()
    first = reader.rows(0, CHUNK)
    before = first.tokens.copy()
    first.tokens[:] = 0
    assert (reader.rows(0, CHUNK).tokens == before).all()


def test_streams_share_no_rows():
    rule = make_rule("dyck", k=64)
    seen = set()
    cases = [(seed, split) for seed in (0, 1, 2) for split in ("train", "validation", "test")]
    for seed, split in cases:
        seen |= set(map(bytes, stream(seed, split, rule, 196).rows(0, 2 * CHUNK).tokens))
    assert len(seen) == len(cases) * 2 * CHUNK  # rows of 98 types out of 64: a repeat means a shared key


def test_settings_and_lengths_have_their_own_randomness():
    a = stream(rule=make_rule("dyck", k=4), length=16).chunk(0).tokens
    b = stream(rule=make_rule("dyck", k=4, p_open=0.61), length=16).chunk(0).tokens
    c = stream(rule=make_rule("dyck", k=4), length=18).chunk(0).tokens[:, :16]
    assert (a == b).all(1).mean() < 0.05 and (a == c).all(1).mean() < 0.05
    spelled_out = make_rule("dyck", k=4, p_open=0.6, balanced=True)
    assert (stream(rule=spelled_out).chunk(0).tokens == a).all()  # a default written out is the same rule


def test_masks():
    rows = stream().masked_rows(0, 4 * CHUNK, 0.5)
    source = stream().rows(0, 4 * CHUNK)
    assert (rows.targets == source.tokens).all()
    assert not (rows.masked & ~source.scored).any()
    assert (rows.inputs == np.where(rows.masked, 1, source.tokens)).all()
    assert abs(rows.masked[source.scored].mean() - 0.5) < 4 * 0.5 / np.sqrt(source.scored.sum())
    assert not stream().masked_rows(0, 8, 0.0).masked.any()
    everything = stream().masked_rows(0, 8, 1.0).masked
    assert (everything == source.scored[:8]).all()
    smaller = stream().masked_rows(0, CHUNK, 0.2).masked
    assert not (smaller & ~stream().masked_rows(0, CHUNK, 0.7).masked).any()
    inputs, masked = masked_batch(source, keyed_rng(0), 0.5, 99)
    assert (inputs[masked] == 99).all() and inputs.dtype == np.int64
    with pytest.raises(ValueError, match="mask_prob"):
        masked_batch(source, keyed_rng(0), 1.5, 1)


@pytest.mark.parametrize("bad", [{"split": "valid"}, {"length": 0}, {"length": 7}])
def test_impossible_streams_are_refused_at_once(bad):
    with pytest.raises(ValueError):
        stream(**bad)


def test_impossible_reads_are_refused():
    with pytest.raises(ValueError):
        stream().rows(4, 4)
    with pytest.raises(ValueError):
        stream().chunk(-1)


def test_keys_do_not_run_together():
    keys = [
        (0,),
        (1,),
        (-1,),
        (2**80,),
        (0, ""),
        (0, 0),
        (0, "0"),
        (0, 0, 0),
        (0, 2**32),
        (0, 1, 0),
        (0, 0, 1),
        (0, "a", "b"),
        (0, "ab"),
        (0, "a,b"),
    ]
    firsts = {keyed_rng(*key).bit_generator.random_raw(2).tobytes() for key in keys}
    assert len(firsts) == len(keys)
    assert keyed_rng(np.int64(3), np.int32(4)).random() == keyed_rng(3, 4).random()
    with pytest.raises(TypeError):
        keyed_rng(0.5)


@pytest.mark.parametrize("probability", [0.0, 0.001, 0.5, 0.6, 1 - 1 / 512, 1.0])
def test_bernoulli_draws_have_their_probability(probability):
    draws = bernoulli(keyed_rng(0, str(probability)), probability, (2000, 2000))
    deviation = np.sqrt(probability * (1 - probability) / draws.size)
    assert draws.shape == (2000, 2000) and draws.dtype == bool
    assert abs(draws.mean() - probability) <= 4 * deviation  # a step of 1/256 would be 16 deviations away


def test_bounded_draws_are_uniform():
    bounds = np.tile([1, 2, 7], 20_000)
    draws = below(keyed_rng(1), bounds)
    for bound in (1, 2, 7):
        seen = np.bincount(draws[bounds == bound], minlength=bound)
        assert len(seen) == bound and (bound == 1 or chisquare(seen).pvalue > 1e-4)


def test_importing_the_rules_needs_only_numpy():
    code = (
        "import sys, vitwarm.procedural; "
        "sys.exit(str({'torch', 'matplotlib', 'scipy', 'timm', 'omegaconf'} & set(sys.modules)) != 'set()')"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("count", [0, 1, 4, 7, 1000])
def test_random_bytes_are_those_of_numpy(count):
    ours, numpys = keyed_rng(3), keyed_rng(3)
    assert (bernoulli(ours, 0.5, (count,)) == (numpys.integers(0, 256, count, np.uint8) < 128)).all()
    assert ours.random() == numpys.random()  # and as much is drawn
