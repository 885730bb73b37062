"""Stems: what turns the inputs of a stage into trunk-width tokens."""

import numpy as np
import torch
from torch import Tensor, nn

from vitwarm.keys import keyed_rng
from vitwarm.trunk.families import family_of

SCALE = 0.02  # norm of every row of both tables: the standard deviation of timm's own embeddings


def token_table(vocab_size: int, width: int, seed: int) -> Tensor:
    """(K, D) rows of norm 0.02: the identity when K <= D, else as orthonormal as K > D rows can be.

    For K > D the rows are stacked random orthonormal bases (QR of Gaussian matrices): rows within a basis are
    orthogonal and no direction is favoured. The sum of the squared inner products of unit rows is then at most D / 4
    above K^2 / D, the least that K rows can have, and equal to it when D divides K.

    Source: arXiv 2511.13945 (frozen scaled identity; the rule for K > D is ours).
    """
    if vocab_size <= width:
        return SCALE * torch.eye(vocab_size, width, dtype=torch.float32)
    rng = keyed_rng(seed, "stem", "tokens")
    bases = [np.linalg.qr(rng.standard_normal((width, width)))[0] for _ in range(-(-vocab_size // width))]
    return SCALE * torch.from_numpy(np.concatenate(bases)[:vocab_size]).float()


def position_table(length: int, width: int, seed: int) -> Tensor:
    """(N, D) random rows of norm 0.02. Source: arXiv 2511.13945."""
    rows = keyed_rng(seed, "stem", "positions").standard_normal((length, width))
    return SCALE * torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()


class SymbolStem(nn.Module):
    """Symbols to tokens for the warm-up: frozen token table + frozen position table, prefix tokens in front.

    The model's prefix tokens (class, distillation, registers) are prepended without a position and train along, as
    blocks expect them there later; models without them get none. Nothing of the stem outlives the stage.

    Args:
        model: timm model that gives the width and the prefix tokens (copied).
        vocab_size: K, the rule's symbols with the special ones.
        length: N, symbols a sequence.
        seed: root seed of both tables.

    Source: arXiv 2511.13945.
    """

    def __init__(self, model: nn.Module, vocab_size: int, length: int, seed: int):
        super().__init__()
        family = family_of(model)
        width = int(family.model.embed_dim)
        self.tokens: Tensor
        self.positions: Tensor
        self.register_buffer("tokens", token_table(vocab_size, width, seed), persistent=False)
        self.register_buffer("positions", position_table(length, width, seed), persistent=False)
        prefix = family.prefix()
        self.prefix = None if prefix is None else nn.Parameter(prefix)  # (1, P, D)
        self.num_prefix_tokens = 0 if self.prefix is None else self.prefix.shape[1]

    def forward(self, symbols: Tensor) -> Tensor:
        """(B, N) ids to (B, P + N, D) tokens."""
        x = self.tokens[symbols] + self.positions
        if self.prefix is not None:
            x = torch.cat([self.prefix.expand(len(x), -1, -1), x], dim=1)
        return x
