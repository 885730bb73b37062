"""Coin tosses and bounded integers, drawn by whole arrays from few random bytes."""

import math

import numpy as np

__all__ = ["below", "bernoulli"]


def bernoulli(rng: np.random.Generator, probability: float, shape: tuple[int, ...]) -> np.ndarray:
    """Independent True values with the given probability, as a bool array of `shape`; exact to 2**-61.

    One random byte decides nearly every value. Where it falls on the byte that holds the threshold, 1 in 256, a finer
    draw decides.
    """
    threshold, rest = divmod(probability * 256, 1)  # both exact: 256 is a power of 2
    words = _bytes(rng, shape)
    if threshold >= 256:
        return np.ones(shape, bool)
    result = words < np.uint8(threshold)
    if rest:
        ties = np.flatnonzero(words == np.uint8(threshold))
        result.reshape(-1)[ties] = rng.random(len(ties)) < rest
    return result


def _bytes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform uint8: what `rng.integers(0, 256, shape, np.uint8)` draws, four bytes at a time."""
    count = math.prod(shape)
    words = rng.integers(0, 2**32, size=-(-count // 4), dtype=np.uint32)
    return words.astype("<u4", copy=False).view(np.uint8)[:count].reshape(shape)


def below(rng: np.random.Generator, bounds: np.ndarray) -> np.ndarray:
    """One uniform integer in [0, bound) for each of `bounds` (all >= 1), exact to bound * 2**-53, as int64."""
    return (rng.random(bounds.shape) * bounds).astype(np.int64)
