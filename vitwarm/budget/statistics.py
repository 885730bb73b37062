"""Intervals, tests and power for a few paired seeds, from arrays of values, with scipy.

The seeds of an arm are paired with the baseline's: the same root seed orders the same images and draws the same
augmentation, so what a seed adds to both cancels in the difference.
"""

import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitwarm.errors import UserError

Array = NDArray[np.float64]
_RESAMPLES = 2000


def load_scipy() -> ModuleType:
    """Import scipy with `stats` and `optimize` on first use.

    Raises:
        UserError: scipy is missing.
    """
    try:
        import scipy
        import scipy.optimize  # noqa: F401  (a submodule: `scipy` is what is returned)
        import scipy.stats  # noqa: F401
    except ImportError as error:
        raise UserError("intervals need scipy: pip install 'vitwarm[plot]'") from error
    return scipy


def t_quantile(n: int, confidence: float = 0.95) -> float:
    """Two-sided quantile of Student's t for the mean of n values."""
    return float(load_scipy().stats.t.ppf((1 + confidence) / 2, n - 1))


def agree(differences: Array) -> bool:
    """Whether the pairs, or the only one, have one difference but for rounding: accuracies come in steps, so that is no
    precision."""
    return len(differences) < 2 or bool(np.ptp(differences) <= 1e-9 * max(1.0, np.abs(differences).max()))


def paired_interval(differences: Array, confidence: float = 0.95) -> tuple[float, float] | tuple[None, None]:
    """Student t interval of the mean of paired differences; a single pair has none, nor have pairs that all agree."""
    if agree(differences):
        return None, None
    low, high = _t_test(differences).confidence_interval(confidence)
    return float(low), float(high)


def without_interval(pairs: int) -> str:
    """Why a mean difference has no interval, in words."""
    return "one seed has no interval" if pairs < 2 else f"{pairs} seeds that agree have no interval"


def paired_p_value(differences: Array) -> float | None:
    """Two-sided p value of the paired t test of no difference; None for a single pair, or when all pairs agree."""
    if agree(differences):
        return None
    return float(_t_test(differences).pvalue)


def _t_test(differences: Array) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that pairs differ by little more than rounding
        return load_scipy().stats.ttest_1samp(differences, 0)


def bootstrap_interval(differences: Array, confidence: float = 0.95) -> tuple[float, float] | tuple[None, None]:
    """Percentile bootstrap of the mean of paired differences; a single pair has none, nor have pairs that all agree.

    It never reaches beyond the smallest and the largest difference, so with n seeds it covers a symmetric truth at most
    `bootstrap_ceiling(n)` of the time, whatever its nominal level. Percentile and not BCa: BCa corrects for a skewness
    that it reads off the n values left out one by one, which with a handful of seeds is noise.
    """
    if agree(differences):
        return None, None
    means = differences[resamples(len(differences))].mean(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def resamples(n: int) -> NDArray[np.int64]:
    """(R, n) indices of n seeds drawn with replacement; always the same ones."""
    return np.random.default_rng(0).integers(n, size=(_RESAMPLES, n))


def bootstrap_ceiling(n: int) -> float:
    """Largest coverage that a bootstrap of n values can have for their median: all lie on one side in 2^(1-n) of cases.

    75 % for three seeds, 94 % for five.
    """
    return 1 - 2.0 ** (1 - n)


def paired_power(effect: float, sd: float, n: int, alpha: float = 0.05) -> float:
    """Probability that the two-sided paired t test of n pairs finds a true mean difference (noncentral t).

    Args:
        effect: the true mean difference.
        sd: standard deviation of paired differences.
        n: pairs.
        alpha: level of the test.
    """
    stats = load_scipy().stats
    critical, shift = stats.t.ppf(1 - alpha / 2, n - 1), effect * np.sqrt(n) / sd
    # the other tail by symmetry: scipy's cdf is not a number there
    return float(stats.nct.sf(critical, n - 1, shift) + stats.nct.sf(critical, n - 1, -shift))


def minimum_detectable_effect(sd: float, n: int, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Smallest true mean difference that n pairs find with the given power.

    Args:
        sd: standard deviation of paired differences, in any unit.
        n: pairs.
        power: probability of finding it.
        alpha: level of the two-sided paired t test.

    Returns:
        In the unit of `sd`; None for a single pair, which finds nothing.
    """
    if n < 2:
        return None
    if sd == 0:
        return 0.0
    high = 1.0
    while paired_power(high, 1.0, n, alpha) < power:
        high *= 2
    return sd * float(load_scipy().optimize.brentq(lambda d: paired_power(d, 1.0, n, alpha) - power, 0.0, high))


def seeds_needed(effect: float, sd: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Fewest pairs that find a true mean difference with the given power; arguments as above."""
    n = 2
    while paired_power(effect, sd, n, alpha) < power:  # doubled, then narrowed: power grows with n
        n *= 2
    low = n // 2
    while n - low > 1:
        middle = (low + n) // 2
        low, n = (low, middle) if paired_power(effect, sd, middle, alpha) >= power else (middle, n)
    return max(n, 2)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values: below alpha where the family of tests holds its level alpha (Holm 1979)."""
    order = np.argsort(p_values)
    steps = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def isotonic(values: Array, weights: Array) -> Array:
    """Least-squares non-decreasing fit along the last axis, by the max-min formula (Barlow et al. 1972).

    scipy's fits one curve a call; the bootstrap needs thousands, of a few points each.

    Args:
        values: (..., K).
        weights: (..., K), positive.
    """
    zero = np.zeros((*values.shape[:-1], 1))
    sums = np.concatenate([zero, np.cumsum(weights * values, -1)], -1)
    mass = np.concatenate([zero, np.cumsum(weights, -1)], -1)
    count = values.shape[-1]
    fitted = np.full(values.shape, -np.inf)
    for first in range(count):
        average = (sums[..., first + 1 :] - sums[..., first, None]) / (mass[..., first + 1 :] - mass[..., first, None])
        smallest = np.minimum.accumulate(average[..., ::-1], -1)[..., ::-1]  # over all ends at or after j
        fitted[..., first:] = np.maximum(fitted[..., first:], smallest)
    return fitted
