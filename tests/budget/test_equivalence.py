"""Where an arm reaches the baseline: curves with known crossings, coverage by simulation, censoring."""

import numpy as np
import pytest
from scipy import stats

from vitwarm.budget.equivalence import AT_MOST, NEVER, REACHED, UNKNOWN, equivalence, first_crossing

BUDGETS = (0.25, 0.5, 0.75, 1.0)
NAN = float("nan")


def curve(crossing, budgets=BUDGETS, slope=3.0):
    """A curve that is linear in the logarithm of the budget and zero at `crossing`."""
    return slope * np.log(np.array(budgets) / crossing)


def noisy(rng, crossing, seeds, sd=0.3, shared=1.0):
    """(values, target) with a part of the noise that both arms of a seed share, and that pairing must remove."""
    common = rng.normal(70, shared, seeds)
    return curve(crossing)[:, None] + common + rng.normal(0, sd, (4, seeds)), common + rng.normal(0, sd, seeds)


@pytest.mark.parametrize("crossing", [0.3, 0.5, 0.61, 0.99])
@pytest.mark.parametrize("higher", [True, False])
def test_a_curve_with_next_to_no_noise_gives_its_crossing(crossing, higher):
    sign = 1 if higher else -1
    values = np.repeat(sign * curve(crossing)[:, None], 3, 1) + np.array([1.0, 2.0, 5.0])
    values += 1e-6 * np.array([-1.0, 0.0, 1.0])
    found = equivalence(BUDGETS, values, np.array([1.0, 2.0, 5.0]), higher)
    assert found.state == REACHED and found.share == pytest.approx(crossing)
    assert found.between[0] <= crossing <= found.between[1] and not found.pooled
    for interval in (found.interval, found.bootstrap):
        assert (interval.low, interval.high) == pytest.approx((crossing, crossing), abs=1e-5)


def test_seeds_that_agree_set_no_end_of_the_interval():
    values = np.array([[0.69, 0.71], [0.75, 0.77]])
    found = equivalence([0.5, 1.0], values, np.array([0.70, 0.72]))
    assert found.share == pytest.approx(np.exp(np.log(0.5) * 5 / 6)) and found.bootstrap is None
    assert (found.interval.low, found.interval.high) == (None, None)


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_covers_the_true_share_as_often_as_it_says(seeds):
    rng, hits, boot, repeats = np.random.default_rng(seeds), 0, 0, 600
    for _ in range(repeats):
        found = equivalence(BUDGETS, *noisy(rng, 0.6, seeds))
        hits += (found.interval.low or 0) <= 0.6 <= (found.interval.high or np.inf)
        boot += (found.bootstrap.low or 0) <= 0.6 <= (found.bootstrap.high or np.inf)
    error = np.sqrt(0.95 * 0.05 / repeats)
    assert 0.95 - 3 * error < hits / repeats < 0.95 + 5 * error  # the hull may cover a little more
    assert boot < hits


def test_the_interval_is_where_the_paired_t_test_does_not_reject():
    rng = np.random.default_rng(8)
    for _ in range(20):
        values, target = noisy(rng, 0.6, 4)
        found = equivalence(BUDGETS, values, target)
        grid = np.exp(np.linspace(np.log(0.25), 0, 4001))
        rows = np.array([[np.interp(np.log(x), np.log(BUDGETS), v) for x in grid] for v in values.T])
        kept = grid[stats.ttest_1samp(rows - target[:, None], 0, axis=0).pvalue >= 0.05]
        low = found.interval.low or BUDGETS[0]
        high = found.interval.high or 1.0
        assert (low, high) == pytest.approx((kept.min(), kept.max()), abs=2e-3)


def test_an_arm_that_is_as_good_at_the_smallest_budget():
    found = equivalence(BUDGETS, *noisy(np.random.default_rng(0), 0.05, 3))
    assert (found.state, found.share, found.between) == (AT_MOST, 0.25, None)
    assert found.interval.low is None and found.interval.high == 0.25 and found.bootstrap.high == 0.25


def test_an_arm_that_never_gets_there_has_no_number():
    found = equivalence(BUDGETS, *noisy(np.random.default_rng(0), 4.0, 3))
    assert (found.state, found.share) == (NEVER, None)
    assert (found.interval.low, found.interval.high) == (1.0, None)


def test_ends_that_the_seeds_cannot_rule_out_are_open():
    values, target = noisy(np.random.default_rng(1), 0.95, 3)
    found = equivalence(BUDGETS, values, target)
    assert found.interval.high is None and found.interval.low is not None


def test_one_seed_has_an_estimate_and_no_interval():
    values = curve(0.6)[:, None]
    found = equivalence(BUDGETS, values, np.zeros(1))
    assert found.share == pytest.approx(0.6) and found.interval is None and found.bootstrap is None


def test_missing_runs_take_their_pairs_with_them():
    values, target = noisy(np.random.default_rng(2), 0.6, 4)
    values[1, 0] = NAN
    found = equivalence(BUDGETS, values, target)
    assert found.pairs == (4, 3, 4, 4) and found.covered == (0.25, 1.0)
    target[3] = NAN
    assert equivalence(BUDGETS, values, target).pairs == (3, 2, 3, 3)
    values[1] = NAN  # that budget is gone: the others are as if it had never been planned
    without = equivalence((0.25, 0.75, 1.0), values[[0, 2, 3]], target)
    found = equivalence(BUDGETS, values, target)
    assert found.pairs == (3, 0, 3, 3) and found.share == without.share and found.interval == without.interval


def test_a_budget_with_one_pair_is_left_out_where_others_have_more():
    values, target = noisy(np.random.default_rng(3), 0.6, 3)
    values[3, 1:] = NAN
    found = equivalence(BUDGETS, values, target)
    assert found.pairs == (3, 3, 3, 1) and found.covered == (0.25, 0.75)


def test_neighbouring_budgets_without_two_common_seeds_leave_all_between_them_open():
    values = np.array([[-1.0, -1.1, NAN, NAN], [NAN, NAN, 1.0, 1.1], [NAN, NAN, 2.0, 2.1]])
    found = equivalence((0.25, 0.5, 1.0), values, np.zeros(4))
    assert (found.interval.low, found.interval.high) == (None, pytest.approx(0.5))


@pytest.mark.parametrize("last", [0.7, 0.75, 0.9])
def test_an_interval_that_ends_at_the_last_budget_with_runs_is_open(last):
    values = np.array([[1.0, -0.9], [NAN, NAN], [3.0, -2.9], [NAN, NAN]])
    assert equivalence((0.25, 0.5, last, 1.0), values, np.zeros(2)).interval.high is None


def test_nothing_to_say_without_two_budgets():
    assert equivalence((1.0,), np.ones((1, 3)), np.zeros(3)).state == UNKNOWN
    assert equivalence(BUDGETS, np.full((4, 3), NAN), np.zeros(3)).state == UNKNOWN


def test_a_dip_is_made_monotone_and_reported():
    values = np.repeat(np.array([[-2.0], [0.5], [-0.7], [1.0]]), 3, 1) + np.array([-0.1, 0.0, 0.1])
    found = equivalence(BUDGETS, values, np.zeros(3))
    pooled = -0.1  # of 0.5 and -0.7: the crossing comes after the dip
    share = np.exp(np.log(0.75) + (0 - pooled) / (1.0 - pooled) * np.log(1 / 0.75))
    assert found.pooled and found.share == pytest.approx(share)
    assert found.interval.low < 0.5 < found.share <= found.interval.high


def test_the_first_crossing_is_the_first_evaluation_that_is_good_enough():
    curves = {0: [(0.2, 1.0), (0.4, 3.0), (0.6, 2.0), (1.0, 4.0)], 1: [(0.2, 0.0), (0.6, 3.5), (1.0, 3.0)], 7: []}
    found = first_crossing(curves, {0: 3.0, 1: 3.2})
    assert found.shares == {0: 0.4, 1: 0.6} and found.mean == pytest.approx(0.5)
    assert (found.low, found.high) == pytest.approx(tuple(stats.t.interval(0.95, 1, 0.5, stats.sem([0.4, 0.6]))))
    assert first_crossing(curves, {0: 5.0, 1: 3.2}).shares == {0: None, 1: 0.6}
    assert first_crossing(curves, {0: 5.0, 1: 3.2}).mean is None
    assert first_crossing({0: [(0.5, 2.0), (1.0, 1.0)]}, {0: 1.5}, higher=False).shares == {0: 1.0}
