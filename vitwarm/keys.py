"""Named random streams: one generator for each (seed, key), the same on every machine and in every process."""

import hashlib
import json
import operator
from numbers import Integral

import numpy as np

from vitwarm.errors import UserError


def require_seed(seed: object) -> int:
    """A root seed as Python's own integer, whatever kind of integer it is.

    Raises:
        UserError: not a whole number from 0 on.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise UserError(f"seed is {seed!r}; give a whole number from 0 on")
    return int(seed)


def keyed_rng(seed: int, *key: str | int) -> np.random.Generator:
    """The generator of the stream named `key` under the root `seed`.

    Any stream is reached directly, without its predecessors, and two different (seed, key) share nothing: not even
    seeds that are neighbours, or a key that is a prefix of another. The whole (seed, key) is hashed, so that strings
    may be part of it and no two keys run together; the hash feeds a `SeedSequence`, which keys NumPy's Philox.

    Args:
        seed: the root seed, any integer.
        key: strings and integers that name the stream, for example `("images", "order", epoch)`.

    Raises:
        TypeError: when the seed or a part of the key is neither an integer nor (key only) a string.
    """
    parts = [operator.index(seed), *(part if isinstance(part, str) else operator.index(part) for part in key)]
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(int.from_bytes(digest, "little"))))
