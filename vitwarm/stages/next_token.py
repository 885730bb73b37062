"""Stage `warmup` of a decoder: the next token of a rule's sequences, or the next state of an automaton as bits.

| | next_token | next_state |
|---|---|---|
| source | arXiv 2601.21725, 2505.22308 | "Intelligence at the Edge of Chaos", arXiv 2410.02536 |
| a token is | a symbol | a state, all its cells at once |
| stem | token table, learned positions | linear map of the bits, learned positions |
| head | a matrix of its own, or the token table | linear map to a logit for each cell |
| loss | cross-entropy | binary cross-entropy, mean over cells |
| outlives the stage | the decoder; `transfer.groups` and the main stage choose | the trunk |
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitwarm.checks import rule_of
from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.keys import keyed_rng
from vitwarm.procedural import Vocab
from vitwarm.procedural.eca import Eca
from vitwarm.procedural.stream import next_token_mask
from vitwarm.stages.batches import StateBatch, TokenBatch
from vitwarm.stages.tokens import Split, next_token_batch, next_token_losses
from vitwarm.stages.warmup import RuleStage, RuleStreams, fresh_trunk, sequence_length, warmup_decoder, with_dropout
from vitwarm.training.batch import Sums
from vitwarm.trunk import Decoder, Trunk, configured_decoder, initialise
from vitwarm.trunk.decoder import INIT_STD


class NextTokenWarmup(RuleStage[TokenBatch]):
    """A decoder with the rule's vocabulary reads sequences from left to right; PAD is never in the loss mask."""

    model: Decoder

    def __init__(self, config: Config, main_samples: int | None, start: Decoder | None = None):
        length = sequence_length(config)
        streams = RuleStreams(config, length)
        sizes, runs = (streams.rule.vocab.size, length), config.warmup.middle_runs
        model = configured_decoder(warmup_decoder(config), *sizes, "warmup", seed=config.seed, middle_runs=runs)
        if start is None and not next(model.parameters()).is_meta:  # of an estimate
            initialise(model, config.model.init, seed=config.seed)
        elif start is not None:
            model.blocks.load_state_dict(start.blocks.state_dict())
            model.norm.load_state_dict(start.norm.state_dict())
        super().__init__(config, main_samples, streams, model, length, length - 1)

    def batch(self, split: Split, start: int, stop: int) -> TokenBatch:
        rows = self.streams.of(split).rows(start, stop)
        return next_token_batch(rows.tokens, next_token_mask(rows, self.config.loss_on))

    def answers(self, batch: TokenBatch) -> Tensor:
        return batch.targets[batch.weights > 0]

    def losses(self, model: Callable[..., Any], batch: TokenBatch, step: int) -> Sums:
        return next_token_losses(model, batch)

    def trained_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        return {n: t.detach().cpu() for n, t in model.state_dict().items()}

    def blocks(self) -> list[nn.Module]:
        return self.model.compile_parts()


class StateModel(nn.Module):
    """Bits -> linear stem and learned positions -> causal trunk -> linear head -> a logit for each bit.

    Args:
        model: decoder (or ViT) whose trunk is trained; its modules are used, not copied.
        cells: C, bits of a state.
        states: longest sequence.
        seed: root seed of the fresh stem and head.
        grad_checkpointing, middle_runs: see `Trunk`.
    """

    def __init__(
        self,
        model: nn.Module,
        cells: int,
        states: int,
        seed: int,
        grad_checkpointing: bool = False,
        middle_runs: int = 1,
    ):
        super().__init__()
        self.trunk = Trunk(model, grad_checkpointing, middle_runs)
        how: Any = {"device": "cpu", "dtype": torch.float32}  # where the generator draws, whatever torch's defaults
        self.stem = nn.Linear(cells, self.trunk.width, **how)
        self.positions = nn.Embedding(states, self.trunk.width, **how)
        self.head = nn.Linear(self.trunk.width, cells, **how)
        generator = torch.Generator().manual_seed(int(keyed_rng(seed, "init", "warmup", "states").integers(2**63)))
        for layer in (self.stem, self.positions, self.head):
            nn.init.normal_(layer.weight, std=INIT_STD, generator=generator)
        for layer in (self.stem, self.head):
            nn.init.zeros_(layer.bias)
        self.float()  # as the trunk is

    def forward(self, states: Tensor) -> Tensor:
        """(B, N, C) of 0 and 1, each state after the one before it, to (B, N, C) logits of the states that follow."""
        x = self.stem(states) + self.positions.weight[: states.shape[1]]
        logits: Tensor = self.head(self.trunk(x, is_causal=True))
        return logits


class NextStateWarmup(RuleStage[StateBatch]):
    """All states of an elementary cellular automaton; a token is a state, so `length` counts states."""

    def __init__(self, config: Config, main_samples: int | None, start: nn.Module | None = None):
        rule = rule_of(config.warmup.rule)
        if not isinstance(rule, Eca) or rule.width is None or rule.block != 1:
            raise UserError(
                "warmup.objective=next_state reads the states of an automaton: set warmup.rule.name=eca, its width, "
                "and block=1"
            )
        self.cells = rule.window or rule.width
        trunk = fresh_trunk(config) if start is None else with_dropout(start, warmup_decoder(config).decoder.dropout)
        length = sequence_length(config, trunk)
        streams = RuleStreams(config, length * self.cells)
        how = config.model.grad_checkpointing, config.warmup.middle_runs
        model = StateModel(trunk, self.cells, length, config.seed, *how)
        super().__init__(config, main_samples, streams, model, length, length - 1)

    def batch(self, split: Split, start: int, stop: int) -> StateBatch:
        rows = self.streams.of(split).rows(start, stop)
        bits = (rows.tokens - len(Vocab.of((), ()).names)).astype(np.float32)
        states = torch.from_numpy(bits).reshape(stop - start, self.length, self.cells)
        return StateBatch(states=states, weight=float(states[:, 1:].numel()))

    def answers(self, batch: StateBatch) -> Tensor:
        return batch.states[:, 1:].flatten()

    def losses(self, model: Callable[..., Any], batch: StateBatch, step: int) -> Sums:
        """Summed binary cross-entropy over the cells of all states but the first, in nats; how many were right."""
        states = batch.states
        logits, targets = model(states[:, :-1]).float(), states[:, 1:]
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        return Sums(loss, ((logits.detach() > 0) == (targets > 0.5)).sum())
