"""What a warm-up left in a trunk: attention entropy of each head, size and spectrum of each block's matrices."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitwarm.checks import rule_of, rule_spec
from vitwarm.errors import UserError
from vitwarm.exports.gpt2 import decoder_of, is_gpt2_model
from vitwarm.exports.weights import require_finite
from vitwarm.keys import require_seed
from vitwarm.procedural import Rule, RuleStream
from vitwarm.trunk import Decoder, Family, SymbolStem, Trunk, family_of, require_values, trunk_facts, unwrap
from vitwarm.trunk.families import copy_of

MATRICES = ("query", "key", "value", "projection", "MLP in", "MLP out")


@dataclass
class Inspection:
    """Numbers of one trunk; L blocks, H heads.

    Attributes:
        entropy: (L, H) mean entropy of a token's attention over the most that it can have: 0 sees one token, 1 sees
            all of them equally.
        rms: matrix -> (L,) root mean square of its entries.
        spectrum: matrix -> L arrays of singular values, falling.
        gains: norm -> (L,) mean weight.
        middle_runs: how often the middle one of three blocks ran (compact core); its entropy is the mean over them.
    """

    entropy: np.ndarray
    rms: dict[str, np.ndarray] = field(default_factory=dict)
    spectrum: dict[str, list[np.ndarray]] = field(default_factory=dict)
    gains: dict[str, np.ndarray] = field(default_factory=dict)
    middle_runs: int = 1

    @property
    def note(self) -> str:
        """What must be known to read the entropies of a core; empty for any other trunk."""
        runs = self.middle_runs
        return f"Block 1 ran {runs} times in succession: its entropies are means over them." if runs > 1 else ""

    def effective_rank(self, matrix: str) -> np.ndarray:
        """(L,) exp of the entropy of the normalised singular values (Roy and Vetterli 2007): 1 to the width."""
        shares = [s / s.sum() for s in self.spectrum[matrix]]
        return np.array([math.exp(-sum(p * math.log(p) for p in share if p > 0)) for share in shares])

    def lowest(self, count: int) -> str:
        """The `heads=` selection of the heads with the least entropy."""
        heads = np.argsort(self.entropy, axis=None, kind="stable")[:count]
        pairs = sorted(divmod(int(h), self.entropy.shape[1]) for h in heads)
        return "heads=" + "+".join(f"{block}:{head}" for block, head in pairs)


@torch.no_grad()
def inspect_trunk(
    model: nn.Module,
    rule: str | Mapping[str, Any] | Rule,
    *,
    length: int | None = None,
    rows: int = 64,
    seed: int = 0,
    middle_runs: int = 1,
) -> Inspection:
    """Look into a trunk, with held-out sequences of a rule for the attention; the model stays as it is.

    A ViT reads them through the warm-up's frozen stem of that seed, a decoder through its own tokens and positions. The
    attention of a token to n others has at most ln n nats; a decoder's first token, which sees itself alone, is left
    out.

    Args:
        model: timm model, decoder or `GPT2LMHeadModel` of transformers.
        rule: name of a rule, {"name": NAME, PARAMETER: value}, or a `Rule`; its validation sequences are read.
        length: tokens of a sequence; None is a ViT's grid, a decoder's positions.
        rows: number of sequences.
        seed: root seed of the sequences and the stem.
        middle_runs: how often the middle one of a ViT's three blocks runs, as in the warm-up of a core; a decoder
            knows its own.

    Raises:
        UserError: a rule that does not exist or does not fit the model, no length or number of rows, or blocks
            without the usual attention and MLP.
    """
    rule, seed = rule if isinstance(rule, Rule) else rule_of(rule_spec(rule)), require_seed(seed)
    whole = {"length": 1 if length is None else length, "rows": rows, "middle_runs": middle_runs}
    for name, number in whole.items():
        if isinstance(number, bool) or not isinstance(number, Integral) or number < 1:
            raise UserError(f"{name} is {number!r}; give a whole number from 1 on")
    own = unwrap(model)
    model = copy_of(require_values(decoder_of(own) if is_gpt2_model(own) else own)).float().cpu().eval()
    family = family_of(model)
    require_finite(family.model.state_dict(), "the model")
    parts = [_matrices(family, block) for block in family.model.blocks]
    decoder = model if isinstance(model, Decoder) else None
    length = length or (math.prod(family.grid) if decoder is None else decoder.n_positions)
    try:
        symbols = torch.from_numpy(RuleStream(rule, seed, "validation", length).rows(0, rows).tokens)
    except ValueError as error:
        raise UserError(f"rule: {error}; set length=") from error
    if decoder and (rule.vocab.size > decoder.vocab_size or length > decoder.n_positions):
        raise UserError(
            f"the rule has {rule.vocab.size} symbols in sequences of {length}, the decoder {decoder.vocab_size} tokens "
            f"and {decoder.n_positions} positions; name the rule that it learnt"
        )
    trunk = Trunk(model, middle_runs=decoder.middle_runs if decoder else middle_runs)
    with family.watch(trunk.blocks, partial(_entropy, causal=decoder is not None)) as seen:
        if decoder:
            decoder.features(decoder.embed(symbols))
        else:
            trunk(SymbolStem(model, rule.vocab.size, length, seed)(symbols))
    if any(len(entropy) != trunk_facts(model)["heads"] for entropy in seen):
        raise UserError(f"a {type(family.model.blocks[0]).__name__} has no attention of the usual kind to look into")
    found = Inspection(_by_block(seen, trunk.middle_runs), middle_runs=trunk.middle_runs)
    for name in MATRICES:
        weights = [part[name].float() for part in parts]
        found.rms[name] = np.array([w.square().mean().sqrt().item() for w in weights])
        found.spectrum[name] = [torch.linalg.svdvals(w).numpy() for w in weights]
    for name in ("norm1", "norm2"):
        gains = [getattr(getattr(block, name, None), "weight", None) for block in family.model.blocks]
        known = [g.mean().item() for g in gains if g is not None]
        if len(known) == len(gains):
            found.gains[name] = np.array(known)
    return found


@torch.no_grad()
def attention_entropy(decoder: Decoder, tokens: Tensor, asked: Tensor) -> np.ndarray:
    """Mean entropy of the attention of each head of a decoder, (L, H), as in `Inspection.entropy`.

    Args:
        decoder: L blocks, H heads.
        tokens: (B, N) ids.
        asked: (B, N) bool, the tokens whose attention counts; the first one sees itself alone and never does.
    """
    family = family_of(require_values(decoder).eval())
    with family.watch(decoder.blocks, partial(_entropy, causal=True, asked=asked)) as seen:
        decoder.features(decoder.embed(tokens))
    return _by_block(seen, decoder.middle_runs)


def _by_block(seen: list[np.ndarray], middle_runs: int) -> np.ndarray:
    """(L, ...) of what was seen at each run of a block, in order: of a core's middle block the mean over its runs."""
    return np.stack([seen[0], np.mean(seen[1:-1], axis=0), seen[-1]] if middle_runs > 1 else seen)


def _matrices(family: Family, block: nn.Module) -> dict[str, Tensor]:
    """The six matrices of a block; a gated MLP's gate and value count as one."""
    try:
        attention, (into, out) = family.attention(block), family.mlp(block)
    except ValueError as error:
        kind = type(block).__name__
        raise UserError(f"a {kind} has no attention and MLP of the usual kind to look into") from error
    own = attention.query, attention.key, attention.value, attention.projection, into, out
    return dict(zip(MATRICES, own, strict=True))


def _entropy(attention: Tensor, causal: bool, asked: Tensor | None = None) -> np.ndarray:
    """(B, H, N, N) attention to (H,) entropy of each head, over the asked (B, N) tokens; see `Inspection.entropy`."""
    size = attention.shape[-1]
    visible = torch.arange(1, size + 1) if causal else torch.full((size,), size)
    entropy = -torch.xlogy(attention, attention).sum(-1) / visible.clamp(min=2).log()  # (B, H, N)
    first = 1 if causal else 0
    if asked is not None:
        return entropy.movedim(1, -1)[:, first:][asked[:, first:]].mean(0).numpy()
    return entropy[..., first:].mean((0, 2)).numpy()
