"""Impulse initialisation: each head attends to one neighbour on the image grid."""

import numpy as np
import torch
import torch.nn.functional as F

from vitwarm.trunk.families import Attention, Family
from vitwarm.trunk.initialisations.mimetic import value_projection
from vitwarm.trunk.initialisations.registry import initialisation

# The constants of the initialisation's code. Head h takes shift h, and the list starts over after the ninth.
SHIFTS = ((0, 0), (-1, 0), (0, 1), (0, -1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))  # (rows, columns)
SHIFT_LOGIT, NOISE_LOGIT, NOISE_STD, NOISE_BOUND = 1000.0, 3.0, 0.6, 2.0
POSITION_GAIN, FACTOR_NORM = 18.0, 7.0


@initialisation("impulse", on_grid=True)
def impulse(layers: list[Attention], rngs: list[np.random.Generator], family: Family) -> None:
    """Structured initialisation (arXiv 2505.19985): each head is one tap of a 3x3 convolution.

    Query and key factor P+ M P+^T, where P holds the normalised positions, P+ is its pseudo-inverse of rank k and M the
    wanted logits. P+ has rank k, so the SVD is that of a (k, k) core.

    Raises:
        ValueError: no learned positions on the grid, or too few of them.
    """
    if (found := family.positions()) is None:
        raise ValueError("it has no learned position for each patch")
    table, prefix = found
    u, s, v = _positions(table[0, prefix:], layers[0].head_width)
    for layer, rng in zip(layers, rngs, strict=True):
        for head, rows in enumerate(layer.head_rows()):
            logits = _shift_logits(rng, family.grid, SHIFTS[head % len(SHIFTS)])
            left, values, right = np.linalg.svd((u / s).T @ logits @ (u / s))
            root = FACTOR_NORM * np.sqrt(values / values.sum())  # the Frobenius norm of either factor
            layer.query[rows] = torch.from_numpy((v @ (left * root)).T).to(layer.query)
            layer.key[rows] = torch.from_numpy((v @ (right.T * root)).T).to(layer.key)
        value_projection(layer, rng)
    table.mul_(POSITION_GAIN)


def _positions(table: torch.Tensor, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The leading part of the SVD of the (N, D) positions, normalised: (N, k), (k,), (D, k).

    Raises:
        ValueError: they do not span the channels of a head.
    """
    grid = F.layer_norm(POSITION_GAIN * table.double().cpu(), table.shape[-1:])
    u, s, vh = np.linalg.svd(grid.numpy(), full_matrices=False)
    if len(s) < rank or s[rank - 1] < 1e-6 * s[0]:
        raise ValueError(f"{len(grid)} positions do not span the {rank} channels of a head; take more heads")
    return u[:, :rank], s[:rank], vh[:rank].T


def _shift_logits(rng: np.random.Generator, grid: tuple[int, int], shift: tuple[int, int]) -> np.ndarray:
    """(N, N): large where the column is the row's neighbour at that shift, noise elsewhere."""
    neighbour = np.kron(*(np.eye(size, k=offset) for size, offset in zip(grid, shift, strict=True)))
    noise = NOISE_STD * rng.standard_normal(neighbour.shape)
    while (out := np.abs(noise) > NOISE_BOUND).any():
        noise[out] = NOISE_STD * rng.standard_normal(out.sum())
    return np.where(neighbour == 1, SHIFT_LOGIT, NOISE_LOGIT * noise)
