"""Estimates how much data an arm needs to be as good as the baseline with all of it, from arrays of values.

An arm's value between two budgets is interpolated linearly in the logarithm of the budget, seed by seed. Interpolation
that is linear in the values keeps paired differences normal, so that the t test of every budget in between is exact; in
the logarithm a learning curve is closest to linear. Where a true curve is concave its chords lie below it, and the
share comes out too large: the saving is understated (docs/results/intervals.md has how much).

The interval inverts that test: it holds every budget at which the paired t interval of the arm's value minus the
baseline's value at the full budget contains zero (Fieller 1954). Such a set may have gaps; its hull is given, which can
only cover more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitwarm.budget.statistics import Array, agree, isotonic, paired_interval, resamples, t_quantile

REACHED, AT_MOST, NEVER, UNKNOWN = "reached", "at most", "never", "unknown"


@dataclass(frozen=True)
class Interval:
    """An interval of a share; None is an end that the data cannot set: below the smallest budget, or above the full."""

    low: float | None
    high: float | None


@dataclass(frozen=True)
class Equivalence:
    """The share of the full budget at which an arm reaches the baseline's value at the full budget.

    Attributes:
        state: `reached`; `at most`: as good already at the smallest budget; `never`: at none of them; `unknown`: fewer
            than two budgets have runs.
        share: the estimate; the smallest budget for `at most`, None for `never` and `unknown`.
        interval: by inversion of the paired t test; None with fewer than two seeds.
        bootstrap: percentile bootstrap of the seeds, for comparison; it is too narrow for few (`bootstrap_ceiling`).
        covered: smallest and largest budget that have enough runs to be used.
        between: the budgets that the estimate lies between.
        pairs: seeds at each budget for which the baseline's full run is there as well.
        pooled: whether the mean fell from one budget to a larger one and was made monotone.
    """

    state: str
    share: float | None = None
    interval: Interval | None = None
    bootstrap: Interval | None = None
    covered: tuple[float, float] | None = None
    between: tuple[float, float] | None = None
    pairs: tuple[int, ...] = ()
    pooled: bool = False


def equivalence(
    budgets: Sequence[float], values: Array, target: Array, higher: bool = True, confidence: float = 0.95
) -> Equivalence:
    """Estimate the share at which the values reach the target.

    Args:
        budgets: K shares, ascending.
        values: (K, seeds) of the arm; NaN where a run is missing.
        target: (seeds,) of the baseline at the full budget, same seeds; NaN where a run is missing.
        higher: whether more is better.
        confidence: level of both intervals.
    """
    gains = (values - target) if higher else (target - values)
    pairs = tuple(int(n) for n in np.isfinite(gains).sum(1))
    enough = min(2, max(pairs, default=0))  # a budget with one pair is left out where others have more
    kept = [k for k, n in enumerate(pairs) if n >= max(enough, 1)]
    if len(kept) < 2:
        return Equivalence(UNKNOWN, pairs=pairs)
    gains, places = gains[kept], np.log([budgets[k] for k in kept])
    mean = np.nanmean(gains, 1)
    fitted = isotonic(mean, np.isfinite(gains).sum(1).astype(float))
    place = float(_crossing(places, fitted))
    state = {-np.inf: AT_MOST, np.inf: NEVER}.get(place, REACHED)
    share = between = None
    if state != NEVER:
        share = budgets[kept[0]] if state == AT_MOST else float(np.exp(place))
    if state == REACHED:
        above = max(1, int(np.searchsorted(places, place)))
        between = budgets[kept[above - 1]], budgets[kept[above]]
    interval = bootstrap = None
    if enough == 2:
        interval = _hull(places, gains, place, confidence)
        bootstrap = _bootstrap(places, gains, confidence)
    pooled = bool(np.any(np.diff(mean) < 0))
    covered = budgets[kept[0]], budgets[kept[-1]]
    return Equivalence(state, share, interval, bootstrap, covered, between, pairs, pooled)


def _crossing(places: Array, gains: Array) -> Array:
    """First place at which non-decreasing gains (..., K) reach zero; -inf before the first, inf after the last."""
    found = np.full(gains.shape[:-1], np.inf)
    for k in reversed(range(1, len(places))):
        left, right = gains[..., k - 1], gains[..., k]
        with np.errstate(divide="ignore", invalid="ignore"):
            place = places[k - 1] + (places[k] - places[k - 1]) * -left / (right - left)
        found = np.where((left < 0) & (right >= 0), place, found)
    return np.where(gains[..., 0] >= 0, -np.inf, found)


def _hull(places: Array, gains: Array, estimate: float, confidence: float) -> Interval:
    """Smallest interval that holds the estimate and every place where the t test does not reject a gain of zero."""
    accepted = [estimate]
    for k in range(len(places) - 1):
        both = np.isfinite(gains[k]) & np.isfinite(gains[k + 1])
        weights = _accepted(gains[k][both], gains[k + 1][both], confidence)
        accepted += [(1 - w) * places[k] + w * places[k + 1] for w in weights]  # exact at both ends
    return _interval(places, min(accepted), max(accepted))


def _accepted(left: Array, right: Array, confidence: float) -> list[float]:
    """Weights w in [0, 1] that bound where the t test of (1 - w) left + w right accepts zero."""
    if agree(left) or agree(right):
        return [0.0, 1.0]  # the test rejects nothing: that seeds agree at a budget is no precision
    slope = right - left
    (constant, cross), (_, square) = np.cov(left, slope)
    k = t_quantile(len(left), confidence) ** 2 / len(left)
    a, b = left.mean(), slope.mean()
    # accepted: (a + w b)^2 <= k (constant + 2 w cross + w^2 square)
    excess = np.array([b * b - k * square, 2 * (a * b - k * cross), a * a - k * constant])
    roots = np.roots(excess)
    ends = [w for w in (0.0, 1.0) if np.polyval(excess, w) <= 0]
    return ends + [float(w.real) for w in roots if np.isreal(w) and 0 < w.real < 1]


def _bootstrap(places: Array, gains: Array, confidence: float) -> Interval | None:
    whole = gains[:, np.isfinite(gains).all(0)]
    if all(agree(pairs) for pairs in whole):
        return None
    means = whole[:, resamples(whole.shape[1])].mean(2).T
    found = _crossing(places, isotonic(means, np.ones_like(means)))
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
    return _interval(places, low, high)


def _interval(places: Array, low: float, high: float) -> Interval:
    """Convert places to shares; an end that nothing rules out is open."""
    first, last = places[0], places[-1]
    return Interval(
        low=None if low <= first else float(np.exp(min(low, last))),
        high=None if high >= last else float(np.exp(max(high, first))),
    )


@dataclass(frozen=True)
class FirstCrossing:
    """The share of a full-length run at which its curve first reaches a target, as the papers read it.

    Attributes:
        shares: by seed; None where the curve never reaches it.
        mean, low, high: over seeds, with the t interval; None unless every seed reaches it (and there are two).
    """

    shares: dict[int, float | None]
    mean: float | None
    low: float | None
    high: float | None


def first_crossing(
    curves: dict[int, list[tuple[float, float]]], targets: dict[int, float], higher: bool = True
) -> FirstCrossing:
    """First evaluation of each curve that is at least as good as the target of its seed; nothing is interpolated.

    Args:
        curves: seed -> (share of the run, value), in order.
        targets: seed -> value to reach; seeds without one are left out.
        higher: whether more is better.
    """
    sign = 1 if higher else -1
    shares: dict[int, float | None] = {}
    for seed, curve in curves.items():
        if seed in targets:
            shares[seed] = next((x for x, value in curve if sign * value >= sign * targets[seed]), None)
    found = [share for share in shares.values() if share is not None]
    if not found or len(found) < len(shares):
        return FirstCrossing(shares, None, None, None)
    return FirstCrossing(shares, float(np.mean(found)), *paired_interval(np.array(found)))
