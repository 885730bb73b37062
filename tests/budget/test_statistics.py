"""Intervals and powers against scipy's own tests, closed forms and simulation."""

import sys

import numpy as np
import pytest
from scipy import optimize, stats

from vitwarm.budget.statistics import (
    bootstrap_ceiling,
    bootstrap_interval,
    holm,
    isotonic,
    minimum_detectable_effect,
    paired_interval,
    paired_p_value,
    paired_power,
    resamples,
    seeds_needed,
)
from vitwarm.errors import UserError


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_t_interval_and_p_value_follow_their_formulas(n):
    differences = np.random.default_rng(n).normal(0.4, 1.3, n)
    mean, error = differences.mean(), differences.std(ddof=1) / np.sqrt(n)
    for confidence in (0.95, 0.8):
        half = stats.t.ppf((1 + confidence) / 2, n - 1) * error
        assert paired_interval(differences, confidence) == pytest.approx((mean - half, mean + half), rel=1e-12)
    assert paired_p_value(differences) == pytest.approx(2 * stats.t.sf(abs(mean) / error, n - 1), rel=1e-12)


def test_the_t_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(4000):
        low, high = paired_interval(rng.normal(0.3, 1.0, 4))
        hits += low <= 0.3 <= high
    assert abs(hits / 4000 - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 4000)


def test_a_single_pair_has_nothing():
    one = np.array([0.4])
    assert paired_interval(one) == bootstrap_interval(one) == (None, None)
    assert paired_p_value(one) is None and minimum_detectable_effect(0.3, 1) is None


def test_pairs_that_are_all_alike_say_nothing_of_their_spread():
    for pairs in (np.array([0.5, 0.5]), np.zeros(3)):
        assert paired_p_value(pairs) is None and paired_interval(pairs) == (None, None)
        assert bootstrap_interval(pairs) == (None, None)


def test_the_bootstrap_is_scipys_percentile_bootstrap():
    differences = np.random.default_rng(3).normal(1, 2, 20)
    theirs = stats.bootstrap((differences,), np.mean, method="percentile", n_resamples=20000, rng=0).confidence_interval
    assert bootstrap_interval(differences) == pytest.approx(tuple(theirs), abs=0.12)
    assert np.bincount(resamples(3).ravel(), minlength=3) / resamples(3).size == pytest.approx(1 / 3, abs=0.02)


def test_three_seeds_are_too_few_for_a_bootstrap():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(2000):
        low, high = bootstrap_interval(rng.normal(0.3, 1.0, 3))
        hits += low <= 0.3 <= high
    assert bootstrap_ceiling(3) == 0.75 and bootstrap_ceiling(5) == 0.9375
    assert hits / 2000 < 0.75 + 3 * np.sqrt(0.75 * 0.25 / 2000)


@pytest.mark.parametrize("n", [3, 5])
def test_the_minimum_detectable_effect_is_found_four_times_in_five(n):
    effect = minimum_detectable_effect(0.4, n)
    draws = np.random.default_rng(2).normal(effect, 0.4, (20000, n))
    found = np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05)
    assert found == pytest.approx(0.8, abs=4 * np.sqrt(0.16 / 20000))


def test_power_has_its_known_ends():
    assert paired_power(0, 1, 5) == pytest.approx(0.05)
    assert paired_power(0.7, 1, 7) == pytest.approx(paired_power(-0.7, 1, 7))
    for n in (2, 20, 100_000):  # where scipy's noncentral t is not a number on the far side
        assert paired_power(50, 1, n) == pytest.approx(1)
    assert minimum_detectable_effect(0, 3) == 0
    assert minimum_detectable_effect(2, 2) == pytest.approx(2 * minimum_detectable_effect(1, 2))


@pytest.mark.parametrize(("effect", "sd"), [(0.5, 1.0), (1.0, 1.0), (0.1, 1.0), (100.0, 1.0)])
def test_seeds_needed_is_the_first_number_that_is_enough(effect, sd):
    n = seeds_needed(effect, sd)
    assert paired_power(effect, sd, n) >= 0.8
    assert n == 2 or paired_power(effect, sd, n - 1) < 0.8


def test_a_textbook_number_of_pairs():
    assert seeds_needed(0.5, 1.0) == 34  # Cohen's d of 0.5, two-sided 5 %, power 80 %: what G*Power says


def test_holm_adjusts_step_by_step():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1, 1] and holm([]) == [] and holm([0.02]) == [0.02]


def test_holm_keeps_the_level_of_the_family():
    p = np.random.default_rng(4).uniform(size=(4000, 3))
    wrong = np.mean([min(holm(row)) < 0.05 for row in p])
    assert wrong == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 4000))


def test_isotonic_is_scipys():
    rng = np.random.default_rng(5)
    values, weights = rng.normal(size=(50, 6)), rng.integers(1, 5, (50, 6)).astype(float)
    expected = [optimize.isotonic_regression(v, weights=w).x for v, w in zip(values, weights, strict=True)]
    np.testing.assert_allclose(isotonic(values, weights), expected, atol=1e-12)


def test_without_scipy_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(UserError, match="intervals need scipy"):
        paired_interval(np.array([1.0, 2.0]))


@pytest.mark.parametrize("n", [360, 1000, 3007])
def test_pairs_that_agree_but_for_rounding_have_no_interval(n):
    """One image more at each seed: in per cent the differences differ in their last bits."""
    counts = np.arange(n // 2, n // 2 + 40)
    for first in counts:
        base = np.array([first, first + 5, first - 2])
        differences = 100 * (base + 1) / n - 100 * base / n
        assert paired_interval(differences) == (None, None) and paired_p_value(differences) is None
    assert paired_interval(np.array([0.1, 0.2, 0.3]))[0] is not None
