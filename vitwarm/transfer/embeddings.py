"""What an algorithmic task takes of the embeddings of a decoder with another vocabulary."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vitwarm.transfer.warm_start import TransferReport
from vitwarm.trunk import Decoder


@torch.no_grad()
def mean_embeddings(decoder: Decoder, tensors: Mapping[str, Tensor], report: TransferReport) -> None:
    """Set every token, and every row of an untied head, to the mean of the source's tokens; copy the positions.

    A source without a token table (its tokens were bits) changes nothing. Positions stay fresh when the source has
    fewer than the decoder.

    Args:
        decoder: changed in place.
        tensors: {canonical name: tensor} of the source.
        report: of the transfer; what changes here is moved from `fresh` to `copied`.

    Source: arXiv 2601.21725 (its public code: `average`).
    """
    if (table := tensors.get("token_embed.weight")) is None:
        return
    own = decoder.state_dict()
    taken: list[str] = [name for name in ("token_embed.weight", "head.weight") if name in own]
    for name in taken:
        own[name].copy_(table.mean(0).expand_as(own[name]))
    positions = tensors["pos_embed.weight"]
    if len(positions) >= decoder.n_positions:
        own["pos_embed.weight"].copy_(positions[: decoder.n_positions])
        taken.append("pos_embed.weight")
    report.copied += [name for name in taken if name in report.fresh]
    report.fresh = [name for name in report.fresh if name not in taken]
