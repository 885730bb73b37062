"""Conditioned initialisation: attention matrices of condition number 1."""

import numpy as np
import torch

from vitwarm.trunk.families import Attention, Family
from vitwarm.trunk.initialisations.registry import initialisation


@initialisation("conditioned", despite_norms=True)
def conditioned(layers: list[Attention], rngs: list[np.random.Generator], family: Family) -> None:
    """Conditioned initialisation (OpenReview cKNOCYPo2W): matrices of condition number 1.

    The paper speaks of one head, whose value is a rectangular identity and whose query and key are semi-orthogonal.
    Here that holds for each head and for the heads together: head h's value passes its own k channels on, where the
    first k for every head would leave the whole singular.
    """
    for layer, rng in zip(layers, rngs, strict=True):
        width = len(layer.query)
        for weight in (layer.query, layer.key):
            q, r = np.linalg.qr(rng.standard_normal((width, width)))
            weight.copy_(torch.from_numpy(q * np.sign(np.diag(r))))  # the signs make the draw uniform
        layer.value.copy_(torch.eye(width))
