"""Rival initialisations: closed-form attention weights that cost no training, as arms against a warm-up.

| name | query and key, per head | value and projection | source |
|---|---|---|---|
| `mimetic` | Wq Wk^T is 0.7 Z + 0.7 I at rank k | x -> V -> projection is 0.4 Z - 0.4 I | arXiv 2305.09828 |
| `mimetic_as_published` | the same with 0.4 Z + 0.4 I | the factors not transposed for timm | copies of its code |
| `conditioned` | semi-orthogonal | V is the identity; projection untouched | OpenReview cKNOCYPo2W |
| `mimetic_value` | untouched | V is sqrt(0.05) I, projection its negative, noise 0.01 | modded-nanogpt, record 64 |
| `impulse` | a position attends to one neighbour on the grid | as `mimetic` | arXiv 2505.19985, its code |

Z has entries N(0, 1/D). Attention biases become 0. All else keeps the weights that the model came with: norms, MLPs,
stem and head (but `impulse` enlarges the positions). So arms of one seed differ in attention alone.

A linear layer of timm computes x W^T: its weight is the transpose of the matrix that a formula multiplies x with.

Shapes: D width, H heads, k = D / H channels a head, N positions of the grid.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitwarm.config import INITS
from vitwarm.errors import UserError
from vitwarm.keys import keyed_rng
from vitwarm.trunk.families import Attention, Family, family_of

QUERY_KEY, VALUE_PROJECTION = 0.7, 0.4  # share of the noise and of the identity alike
QUERY_KEY_AS_PUBLISHED = 0.4
VALUE_BETA, VALUE_NOISE = 0.05, 0.01  # of a language model: x -> V -> projection is -0.05 I, and noise

# The constants of the impulse initialisation's code. Head h takes shift h, and the list starts over after the ninth.
SHIFTS = ((0, 0), (-1, 0), (0, 1), (0, -1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))  # (rows, columns)
SHIFT_LOGIT, NOISE_LOGIT, NOISE_STD, NOISE_BOUND = 1000.0, 3.0, 0.6, 2.0
POSITION_GAIN, FACTOR_NORM = 18.0, 7.0


@torch.no_grad()
def initialise(model: nn.Module, name: str, *, seed: int) -> nn.Module:
    """Give the attention of a timm model another start: in place, or not at all when it is refused.

    Block b draws from the stream (seed, "init", NAME, b), whatever the model is for, so that the models of two stages
    start with the same attention; the two mimetic variants share their Z.

    Args:
        model: timm model with a supported trunk.
        name: `default`, which leaves the model alone, or one of the module's table.
        seed: root seed.

    Returns:
        The same model.

    Raises:
        UserError: unknown name, or a model that the formulas do not cover.
    """
    if name not in INITS:
        raise UserError(f"unknown initialisation {name!r}; known: {', '.join(INITS)}")
    if name == "default":
        return model
    family = family_of(model)
    try:
        layers = [_attention(family, block) for block in family.model.blocks]
        positions = _positions(family, layers[0].head_width) if name == "impulse" else None
    except ValueError as error:
        raise UserError(f"model.init={name} does not apply to this {type(model).__name__}: {error}") from error
    stream = "mimetic" if name == "mimetic_as_published" else name
    for number, layer in enumerate(layers):
        rng = keyed_rng(seed, "init", stream, number)
        if name == "conditioned":
            _conditioned(layer, rng)
        elif name == "mimetic_value":
            _mimetic_value(layer, rng)
        elif positions is not None:
            _impulse(layer, rng, positions, family.grid)
        else:
            _mimetic(layer, rng, as_published=name == "mimetic_as_published")
        for bias in layer.biases:
            bias.zero_()
    if positions is not None and (found := family.positions()) is not None:
        found[0].mul_(POSITION_GAIN)
    return model


def _attention(family: Family, block: nn.Module) -> Attention:
    """The weights to set.

    Raises:
        ValueError: the block computes more than x -> query, key, value -> projection, which the formulas assume.
    """
    layer = family.attention(block)
    if layer.others:
        raise ValueError(f"its attention has more than query, key, value and projection ({layer.others[0]})")
    width = len(layer.projection)
    if any(w.shape != (width, width) for w in (layer.query, layer.key, layer.value, layer.projection)):
        raise ValueError("its heads together are not as wide as the model")
    return layer


def _mimetic(layer: Attention, rng: np.random.Generator, as_published: bool) -> None:
    """Mimetic initialisation (arXiv 2305.09828).

    The variant is what widespread code does: 0.4 for query and key too, and value and projection stored as the formula
    has them. timm's x W^T then multiplies the factors in the other order.
    """
    share = QUERY_KEY_AS_PUBLISHED if as_published else QUERY_KEY
    for rows in layer.head_rows():
        left, right = _factors(rng, len(layer.query), share, share)
        layer.query[rows] = left[:, : layer.head_width].T
        layer.key[rows] = right[: layer.head_width]
    _mimetic_output(layer, rng, transposed=not as_published)


def _mimetic_output(layer: Attention, rng: np.random.Generator, transposed: bool = True) -> None:
    left, right = _factors(rng, len(layer.value), VALUE_PROJECTION, -VALUE_PROJECTION)
    layer.value.copy_(left.T if transposed else left)
    layer.projection.copy_(right.T if transposed else right)


def _mimetic_value(layer: Attention, rng: np.random.Generator) -> None:
    """Value and projection of opposite identities, as found to help a language model (modded-nanogpt, record 64).

    There each head has V = sqrt(b) I and O = -sqrt(b) I on its own channels, with normal noise; b = 0.05, sd 0.01.
    """
    eye = np.eye(len(layer.value), dtype=np.float32)
    for weight, sign in ((layer.value, 1), (layer.projection, -1)):
        noise = VALUE_NOISE * rng.standard_normal(eye.shape, dtype=np.float32)
        weight.copy_(torch.from_numpy(sign * VALUE_BETA**0.5 * eye + noise))


def _factors(rng: np.random.Generator, width: int, noise: float, identity: float) -> tuple[Tensor, Tensor]:
    """L = U S^1/2 and R = S^1/2 V^T with L R = noise Z + identity I, singular values falling; both (D, D)."""
    z = rng.standard_normal((width, width), dtype=np.float32) / width**0.5
    u, s, vh = torch.linalg.svd(torch.from_numpy(noise * z + identity * np.eye(width, dtype=np.float32)))
    root = s.sqrt()
    return u * root, root[:, None] * vh


def _conditioned(layer: Attention, rng: np.random.Generator) -> None:
    """Conditioned initialisation (OpenReview cKNOCYPo2W): matrices of condition number 1.

    The paper speaks of one head, whose value is a rectangular identity and whose query and key are semi-orthogonal.
    Here that holds for each head and for the heads together: head h's value passes its own k channels on, where the
    first k for every head would leave the whole singular.
    """
    width = len(layer.query)
    for weight in (layer.query, layer.key):
        q, r = np.linalg.qr(rng.standard_normal((width, width)))
        weight.copy_(torch.from_numpy(q * np.sign(np.diag(r))))  # the signs make the draw uniform
    layer.value.copy_(torch.eye(width))


def _positions(family: Family, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The leading part of the SVD of the normalised grid positions: (N, k), (k,), (D, k).

    Raises:
        ValueError: no learned positions on the grid, or too few of them.
    """
    if (found := family.positions()) is None:
        raise ValueError("it has no learned position for each patch")
    table, prefix = found
    grid = F.layer_norm(POSITION_GAIN * table[0, prefix:].double().cpu(), table.shape[-1:])
    u, s, vh = np.linalg.svd(grid.numpy(), full_matrices=False)
    if len(s) < rank or s[rank - 1] < 1e-6 * s[0]:
        raise ValueError(f"{len(grid)} positions do not span the {rank} channels of a head; take more heads")
    return u[:, :rank], s[:rank], vh[:rank].T


def _impulse(
    layer: Attention,
    rng: np.random.Generator,
    positions: tuple[np.ndarray, np.ndarray, np.ndarray],
    grid: tuple[int, int],
) -> None:
    """Structured initialisation (arXiv 2505.19985): each head is one tap of a 3x3 convolution.

    Query and key factor P+ M P+^T, where P holds the normalised positions, P+ is its pseudo-inverse of rank k and M the
    wanted logits. P+ has rank k, so the SVD is that of a (k, k) core.
    """
    u, s, v = positions
    for head, rows in enumerate(layer.head_rows()):
        logits = _shift_logits(rng, grid, SHIFTS[head % len(SHIFTS)])
        left, values, right = np.linalg.svd((u / s).T @ logits @ (u / s))
        root = FACTOR_NORM * np.sqrt(values / values.sum())  # the Frobenius norm of either factor
        layer.query[rows] = torch.from_numpy((v @ (left * root)).T).to(layer.query)
        layer.key[rows] = torch.from_numpy((v @ (right.T * root)).T).to(layer.key)
    _mimetic_output(layer, rng)


def _shift_logits(rng: np.random.Generator, grid: tuple[int, int], shift: tuple[int, int]) -> np.ndarray:
    """(N, N): large where the column is the row's neighbour at that shift, noise elsewhere."""
    neighbour = np.kron(*(np.eye(size, k=offset) for size, offset in zip(grid, shift, strict=True)))
    noise = NOISE_STD * rng.standard_normal(neighbour.shape)
    while (out := np.abs(noise) > NOISE_BOUND).any():
        noise[out] = NOISE_STD * rng.standard_normal(out.sum())
    return np.where(neighbour == 1, SHIFT_LOGIT, NOISE_LOGIT * noise)
