"""Mimetic initialisation and its relatives: query and key, value and projection near multiples of the identity."""

import numpy as np
import torch
from torch import Tensor

from vitwarm.trunk.families import Attention, Family
from vitwarm.trunk.initialisations.registry import initialisation

QUERY_KEY, VALUE_PROJECTION = 0.7, 0.4  # share of the noise and of the identity, the same for both
QUERY_KEY_AS_PUBLISHED = 0.4
VALUE_BETA, VALUE_NOISE = 0.05, 0.01  # of a language model: x -> V -> projection is -0.05 I, and noise


@initialisation("mimetic")
def mimetic(layers: list[Attention], rngs: list[np.random.Generator], family: Family) -> None:
    """Mimetic initialisation (arXiv 2305.09828)."""
    for layer, rng in zip(layers, rngs, strict=True):
        _query_key(layer, rng, QUERY_KEY)
        value_projection(layer, rng)


@initialisation("mimetic_as_published", stream="mimetic")
def mimetic_as_published(layers: list[Attention], rngs: list[np.random.Generator], family: Family) -> None:
    """What widespread code does: 0.4 for query and key too, and value and projection stored as the formula has them.

    timm's x W^T then multiplies the factors in the other order.
    """
    for layer, rng in zip(layers, rngs, strict=True):
        _query_key(layer, rng, QUERY_KEY_AS_PUBLISHED)
        value_projection(layer, rng, transposed=False)


@initialisation("mimetic_value")
def mimetic_value(layers: list[Attention], rngs: list[np.random.Generator], family: Family) -> None:
    """Value and projection of opposite identities, as found to help a language model (modded-nanogpt, record 64).

    There each head has V = sqrt(b) I and O = -sqrt(b) I on its own channels, with normal noise; b = 0.05, sd 0.01.
    """
    for layer, rng in zip(layers, rngs, strict=True):
        eye = np.eye(len(layer.value), dtype=np.float32)
        for weight, sign in ((layer.value, 1), (layer.projection, -1)):
            noise = VALUE_NOISE * rng.standard_normal(eye.shape, dtype=np.float32)
            weight.copy_(torch.from_numpy(sign * VALUE_BETA**0.5 * eye + noise))


def _query_key(layer: Attention, rng: np.random.Generator, share: float) -> None:
    for rows in layer.head_rows():
        left, right = _factors(rng, len(layer.query), share, share)
        layer.query[rows] = left[:, : layer.head_width].T
        layer.key[rows] = right[: layer.head_width]


def value_projection(layer: Attention, rng: np.random.Generator, transposed: bool = True) -> None:
    """x -> V -> projection is 0.4 Z - 0.4 I; `transposed` for the way in which timm multiplies."""
    left, right = _factors(rng, len(layer.value), VALUE_PROJECTION, -VALUE_PROJECTION)
    layer.value.copy_(left.T if transposed else left)
    layer.projection.copy_(right.T if transposed else right)


def _factors(rng: np.random.Generator, width: int, noise: float, identity: float) -> tuple[Tensor, Tensor]:
    """L = U S^1/2 and R = S^1/2 V^T with L R = noise Z + identity I, singular values falling; both (D, D)."""
    z = rng.standard_normal((width, width), dtype=np.float32) / width**0.5
    u, s, vh = torch.linalg.svd(torch.from_numpy(noise * z + identity * np.eye(width, dtype=np.float32)))
    root = s.sqrt()
    return u * root, root[:, None] * vh
