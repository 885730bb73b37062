"""GPT-2 from timm's own blocks: the trunk of a ViT under a causal mask, with a token table and learned positions.

| part | choice (Radford et al. 2019, and its released weights) |
|---|---|
| blocks | timm's pre-norm `Block`: biases everywhere, MLP of 4 widths, tanh GELU, LayerNorm epsilon 1e-5 |
| positions | learned, added to the tokens |
| head | the token table itself (tied), or its own matrix; no bias |
| fresh weights | N(0, 0.02); what writes to the residual stream N(0, 0.02 / sqrt(2 depth)); biases 0, norms 1 |
| dropout | one rate: on the embeddings, on attention, before each residual sum |

Shapes: B sequences, N tokens, D channels, V symbols.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import GELUTanh, LayerNorm
from torch import Tensor, nn

from vitwarm.config import ModelConfig
from vitwarm.errors import UserError
from vitwarm.keys import keyed_rng
from vitwarm.trunk.blocks import in_order, is_compiled, mask_arguments, run_blocks
from vitwarm.trunk.decoder_block import Block, gather
from vitwarm.trunk.tiny import obstacle, tiny_loss
from vitwarm.trunk.token_loss import MAX_LOGITS, HeadChunk, TokenLoss, token_loss

LAYER_NORM_EPS = 1e-5
INIT_STD = 0.02
MOST_BLOCKS = 1000
SORTED_ROWS = 100  # sequences that are computed at once on a CPU, where their lengths differ


@dataclass(frozen=True)
class DecoderSize:
    """Depth, heads and width; written `DEPTH_HEADS_WIDTH`, as arXiv 2601.21725 names its models."""

    depth: int
    heads: int
    width: int

    @classmethod
    def parse(cls, text: str) -> "DecoderSize":
        """`12_12_768` (124M), `24_16_1024` (350M), `24_16_2048` (1.3B), `2_4_16`, or any other.

        Raises:
            UserError: not three whole numbers, or a width that the heads do not divide.
        """
        if not re.fullmatch(r"([1-9][0-9]*_){2}[1-9][0-9]*", str(text)):
            raise UserError(f"decoder size {text[:60]!r} is not DEPTH_HEADS_WIDTH, such as 12_12_768 or 2_4_16")
        parts = text.split("_")
        if max(map(len, parts)) > 9 or int(parts[0]) > MOST_BLOCKS:
            raise UserError(f"decoder size {text[:60]}: no more than {MOST_BLOCKS} blocks, and numbers below a billion")
        size = cls(*map(int, parts))
        if size.width % size.heads:
            fits = -(-size.width // size.heads) * size.heads
            raise UserError(f"decoder size {text}: {size.heads} heads do not divide width {size.width}; take {fits}")
        return size

    def __str__(self) -> str:
        return f"{self.depth}_{self.heads}_{self.width}"


class Decoder(nn.Module):
    """A GPT-2 language model. Its trunk's tensors have a timm ViT's names: `blocks.N.*`, `norm.*`.

    Args:
        size: see `DecoderSize.parse`.
        vocab_size: V.
        n_positions: longest sequence.
        dropout: rate of all dropouts.
        tied: the head is the token table.
        grad_checkpointing: recompute each block in the backward pass.
        middle_runs: how often the middle one of three blocks runs, one time after the other; see `Trunk`.
        generator: draws the fresh weights, on the CPU; None is torch's global one.

    Raises:
        UserError: an impossible size. Not three blocks, where one is to repeat.

    Attributes:
        text_ids: `bos_token_id` and `eos_token_id` of the vocabulary that came with the weights; empty without any.
    """

    text_ids: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self,
        size: DecoderSize | str,
        vocab_size: int,
        n_positions: int,
        *,
        dropout: float = 0.0,
        tied: bool = True,
        grad_checkpointing: bool = False,
        middle_runs: int = 1,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.size = size = size if isinstance(size, DecoderSize) else DecoderSize.parse(size)
        for what, number in (("vocab_size", vocab_size), ("n_positions", n_positions)):
            if isinstance(number, bool) or not isinstance(number, Integral) or number < 1:
                raise UserError(f"{what} is {number!r}; give a whole number from 1 on")
        self.vocab_size, self.n_positions = int(vocab_size), int(n_positions)  # perhaps of NumPy, which JSON refuses
        self.dropout = dropout
        self.embed_dim = size.width
        self.tied = tied
        self.grad_checkpointing, self.middle_runs = grad_checkpointing, middle_runs
        self.max_logits = MAX_LOGITS
        norm_layer: Any = partial(LayerNorm, eps=LAYER_NORM_EPS)  # timm asks for a class, and takes what makes a norm
        with torch.device("meta"):  # timm's and torch's own fresh weights would be drawn in vain
            self.token_embed = nn.Embedding(vocab_size, size.width)
            self.pos_embed = nn.Embedding(n_positions, size.width)
            self.blocks = nn.Sequential(
                *(
                    Block(
                        size.width,
                        size.heads,
                        qkv_bias=True,
                        proj_drop=dropout,
                        attn_drop=dropout,
                        act_layer=GELUTanh,
                        norm_layer=norm_layer,
                        depth=i,
                    )
                    for i in range(size.depth)
                )
            )
            in_order(self.blocks, middle_runs)  # refuses a middle of other than three blocks
            self.norm = norm_layer(size.width)
            self.head = None if tied else nn.Linear(size.width, vocab_size, bias=False)
        for block in self.blocks:
            mlp: Any = block.mlp
            mlp.drop1 = nn.Identity()  # timm drops inside the MLP as well, GPT-2 only behind it
        self.embed_drop = nn.Dropout(dropout)
        self.head_chunk = HeadChunk()
        self.to_empty(device=torch.empty(0).device)  # of the `with torch.device(...)` around, if any
        self.init_weights(generator)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw GPT-2's fresh weights; see the module's table."""
        for name, p in self.named_parameters():
            if p.is_meta:
                continue
            if p.ndim == 1:
                p.fill_(1.0 if name.endswith("weight") else 0.0)  # norms, and biases
                continue
            residual = name.endswith(("attn.proj.weight", "mlp.fc2.weight"))
            std = INIT_STD / (2 * self.size.depth) ** 0.5 if residual else INIT_STD
            p.copy_(torch.empty(p.shape, dtype=p.dtype, device="cpu").normal_(std=std, generator=generator))

    @property
    def head_weight(self) -> Tensor:
        """Output weights, (V, D): the token table when tied."""
        return self.token_embed.weight if self.head is None else self.head.weight

    def check_length(self, tokens: int) -> None:
        """Refuse a sequence of more tokens than the model has positions.

        Raises:
            UserError: they are more.
        """
        if tokens > self.n_positions:
            raise UserError(f"{tokens} tokens do not fit the decoder's {self.n_positions} positions")

    def embed(self, tokens: Tensor, start: int = 0) -> Tensor:
        """(B, N) ids at the positions from `start` on to (B, N, D).

        Raises:
            UserError: more positions than the model has.
        """
        stop = start + tokens.shape[1]
        self.check_length(stop)
        embedded: Tensor = self.embed_drop(self.token_embed(tokens) + self.pos_embed.weight[start:stop])
        return embedded

    def _may_leave_out(self) -> bool:
        """Whether to compute only what is asked for: dropout hangs on the shapes, and seeds are stacked whole."""
        own = isinstance(self.token_embed.weight, nn.Parameter)  # not one that torch.func has put in its place
        return own and not self.dropout

    def features(self, x: Tensor, attn_mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """(B, N, D) embedded tokens to (B, N, D) normalised features; a token sees itself and those before it.

        Args:
            x: what `embed` gives, or another stem's tokens.
            attn_mask: as in `mask_arguments`, on top of causality; keeps packed documents apart, say.
            positions: (B, M) indices into the N tokens, the only ones whose features are wanted: (B, M, D).
        """
        blocks = in_order(self.blocks, self.middle_runs)
        arguments = [mask_arguments(x, attn_mask, True)] * len(blocks)
        if positions is not None and attn_mask is None and self._may_leave_out():
            arguments[-1], positions = {"positions": positions}, None
        x = run_blocks(blocks, x, arguments, grad_checkpointing=self.grad_checkpointing)
        normalised: Tensor = self.norm(x if positions is None else gather(x, positions))
        return normalised

    def logits(self, features: Tensor) -> Tensor:
        """(..., D) features to (..., V) logits."""
        return F.linear(features, self.head_weight)

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        weights: Tensor | None = None,
        attn_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> TokenLoss:
        """Summed cross-entropy in nats, in chunks of the vocabulary's logits; see `token_loss`.

        Args:
            tokens: (B, N) ids.
            targets: (B, N), the id that is to be predicted at each position; -100 counts nothing.
            weights: (B, N), what each prediction counts, None for 1.
            attn_mask: see `features`.
            positions: (B, M) indices into the N tokens, the only ones to predict at, each once a sequence; targets and
                weights are then (B, M), and no logits of other positions are computed.
        """
        self.check_length(tokens.shape[1])
        if attn_mask is None and (fast := tiny_loss(self, tokens, targets, weights, positions)):
            return fast
        if positions is None or attn_mask is not None or len(tokens) <= SORTED_ROWS or not self._may_cut():
            return self._loss(tokens, targets, weights, attn_mask, positions)
        weights = torch.ones(targets.shape, device=targets.device) if weights is None else weights
        lengths = (positions + 1).where(weights != 0, 1).amax(1)
        parts = []
        differ = lengths.float().mean() < 0.8 * lengths.max()
        for rows in lengths.argsort(stable=True).split(SORTED_ROWS if differ else len(lengths)):
            length = int(lengths[rows].max())  # tokens behind it change nothing
            asked = positions[rows].clamp(max=length - 1)
            parts.append(self._loss(tokens[rows, :length], targets[rows], weights[rows], None, asked))
        return TokenLoss(*(torch.stack(sums).sum() for sums in zip(*parts, strict=True)))

    def _may_cut(self) -> bool:
        """Whether shapes may hang on the data: not where a device would be waited for, or code compiled."""
        on_cpu = self.token_embed.weight.device.type == "cpu"
        return on_cpu and self._may_leave_out() and not is_compiled(self.blocks[0])

    def _loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        attn_mask: Tensor | None,
        positions: Tensor | None,
    ) -> TokenLoss:
        x = self.features(self.embed(tokens), attn_mask, positions)
        return token_loss(x, self.head_weight, targets, weights, head=self.head_chunk, max_logits=self.max_logits)

    def loss_path(self) -> str | None:
        """Which code computes `loss` as things are now, for a log."""
        why = obstacle(self)
        return f"losses in PyTorch ({why})" if why else "losses in compiled code for tiny decoders (vitwarm.trunk.tiny)"

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        attn_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor | TokenLoss:
        """(B, N) ids to (B, N, V) logits; with targets, to the loss: wrappers such as DDP see no other method."""
        if targets is not None:
            return self.loss(tokens, targets, weights, attn_mask, positions)
        return self.logits(self.features(self.embed(tokens), attn_mask))

    def compile_parts(self) -> list[nn.Module]:
        """Modules to compile in place."""
        return [*self.blocks, self.head_chunk]


def build_decoder(
    size: str,
    vocab_size: int,
    n_positions: int,
    *init_key: str | int,
    seed: int,
    make: Callable[..., Decoder] = Decoder,
    **more: Any,
) -> Decoder:
    """A decoder with seeded fresh weights; the global torch RNG is left as it was.

    Args:
        size: `DEPTH_HEADS_WIDTH`.
        vocab_size: V.
        n_positions: longest sequence.
        init_key: names the random stream of the initialisation, e.g. `"text"`.
        seed: root seed.
        make: `Decoder`, or a subclass.
        more: its further arguments.

    Raises:
        UserError: an impossible size.
    """
    generator = torch.Generator().manual_seed(int(keyed_rng(seed, "init", *init_key).integers(2**63)))
    return make(size, vocab_size, n_positions, generator=generator, **more)


def configured_decoder(
    config: ModelConfig, vocab_size: int, n_positions: int, *init_key: str | int, seed: int, **more: Any
) -> Decoder:
    """The decoder of a recipe with the vocabulary and the positions of a stage; the rest as in `build_decoder`."""
    assert config.decoder.size is not None  # what makes a recipe one of a decoder
    return build_decoder(
        config.decoder.size,
        vocab_size,
        n_positions,
        *init_key,
        seed=seed,
        dropout=config.decoder.dropout,
        tied=config.decoder.tied,
        grad_checkpointing=config.grad_checkpointing,
        **more,
    )
