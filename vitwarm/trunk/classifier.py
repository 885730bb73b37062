"""A decoder that sorts texts into classes: what it computes at a text's last token goes through a linear head."""

from typing import Any

import torch
from torch import Tensor, nn

from vitwarm.trunk.decoder import INIT_STD, Decoder, DecoderSize


class Classifier(Decoder):
    """GPT-2 with a head for classes in place of that for tokens, as `transformers.GPT2ForSequenceClassification`.

    Under causal attention the last token is the only one that has seen all of the text. So padding on the right needs
    no mask: no token of the text sees it, and nothing is read from it.

    Args:
        size, vocab_size, n_positions, dropout, grad_checkpointing, generator: see `Decoder`.
        labels: names of the classes.
        pad: id behind the shorter texts of a batch; the last token that is another is a text's last.
        tied: of the recipe's language models (a warm-up's); here is no head for tokens.

    Source: the last token as in Radford et al. 2018 (GPT); the head's N(0, 0.02) and its missing bias as in
    `transformers`.
    """

    def __init__(
        self,
        size: str | DecoderSize,
        vocab_size: int,
        n_positions: int,
        *,
        labels: tuple[str, ...],
        pad: int,
        tied: bool = True,
        generator: torch.Generator | None = None,
        **more: Any,
    ):
        super().__init__(size, vocab_size, n_positions, generator=generator, **more)
        self.labels, self.pad = labels, pad
        with torch.device("meta"):
            self.score = nn.Linear(self.embed_dim, len(labels), bias=False)
        self.score.to_empty(device=torch.empty(0).device)
        with torch.no_grad():  # drawn on the CPU, as all fresh weights
            fresh = torch.empty(self.score.weight.shape, device="cpu").normal_(std=INIT_STD, generator=generator)
            self.score.weight.copy_(fresh)

    def loss_path(self) -> None:
        """No `loss` of tokens, so nothing to choose."""
        return None

    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]  # no tokens to predict, so no targets
        """(B, N) ids to (B, C) logits of the classes."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        last = ((tokens != self.pad) * positions).argmax(1)  # (B,); the first position in a sequence of padding alone
        logits: Tensor = self.score(self.features(self.embed(tokens), positions=last[:, None])[:, 0])
        return logits
