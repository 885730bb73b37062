"""Stage `warmup`: a trunk learns from sequences of a rule; here by masked-token prediction (arXiv 2511.13945)."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from vitwarm.amounts import Amount
from vitwarm.checks import rule_of
from vitwarm.config import Config, ModelConfig
from vitwarm.errors import UserError
from vitwarm.keys import keyed_rng
from vitwarm.procedural import Rule, RuleStream
from vitwarm.procedural.composite import Curriculum
from vitwarm.procedural.stream import require_targets
from vitwarm.stages.batches import MaskedBatch
from vitwarm.stages.tokens import Split, TokenStage
from vitwarm.training.batch import Sums, Totals
from vitwarm.training.protocol import B
from vitwarm.trunk import SymbolStem, Trunk, build_model, configured_decoder, family_of, initialise, is_drop_rate
from vitwarm.trunk.families import copy_of


class WarmupModel(nn.Module):
    """Symbol stem -> trunk -> linear head; only the trunk outlives the stage.

    Args:
        vit: timm model (or decoder) whose trunk is trained; its modules are used, not copied.
        vocab_size: K.
        length: N.
        seed: root seed of the stem's frozen tables and of the head's fresh weights.
        grad_checkpointing, middle_runs: see `Trunk`.
    """

    def __init__(
        self,
        vit: nn.Module,
        vocab_size: int,
        length: int,
        seed: int,
        grad_checkpointing: bool = False,
        middle_runs: int = 1,
    ):
        super().__init__()
        self.stem = SymbolStem(vit, vocab_size, length, seed)
        self.trunk = Trunk(vit, grad_checkpointing, middle_runs)
        self.head = nn.Linear(
            self.trunk.width, vocab_size, device="cpu", dtype=torch.float32
        )  # where, and how, its generator draws
        generator = torch.Generator().manual_seed(int(keyed_rng(seed, "init", "warmup", "head").integers(2**63)))
        nn.init.trunc_normal_(self.head.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.bias)
        self.float()  # as the trunk is

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits at some positions.

        Args:
            tokens: (B, N) ids.
            positions: (M,) indices into the flattened (B * N) tokens.

        Returns:
            (M, K).
        """
        features = self.trunk(self.stem(tokens))[:, self.stem.num_prefix_tokens :]  # prefix outputs are dropped
        logits: Tensor = self.head(features.flatten(0, 1)[positions])
        return logits


class RuleStreams:
    """The training and the validation stream of a rule; of a curriculum, at its present level.

    Args:
        config: the recipe.
        length: symbols of a sequence.

    Raises:
        UserError: the rule cannot fill a sequence of that length.
    """

    def __init__(self, config: Config, length: int):
        self.rule, self.seed, self.length = rule_of(config.warmup.rule), config.seed, length
        self._open()
        try:
            require_targets(self.validation.chunk(0), config.warmup.objective, config.warmup.loss_on)
        except ValueError as error:
            raise UserError(f"warmup.rule: {error}") from error

    def _open(self) -> None:
        self.chance: float | None = None  # of these streams, once it was counted
        try:
            self.train, self.validation = (
                RuleStream(self.rule, self.seed, split, self.length) for split in ("train", "validation")
            )
        except ValueError as error:
            raise UserError(f"warmup.rule: {error}") from error

    @property
    def adapts(self) -> bool:
        """Whether an evaluation may change what comes next."""
        return isinstance(self.rule, Curriculum)

    def of(self, split: Split) -> RuleStream:
        return self.train if split == "train" else self.validation

    def next_level(self, accuracy: float) -> int | None:
        """The level of a curriculum that holds after an evaluation; None for other rules."""
        return self.rule.next_level(accuracy, self.length) if isinstance(self.rule, Curriculum) else None

    def set_level(self, level: int) -> None:
        if isinstance(self.rule, Curriculum) and level != self.rule.level:
            self.rule = self.rule.at(level)
            self._open()


def warmup_decoder(config: Config) -> ModelConfig:
    """The decoder that the warm-up trains: the recipe's, with a head and dropout of its own where it says so."""
    decoder, own = config.model.decoder, config.warmup
    tied = decoder.tied if own.tied is None else own.tied
    dropout = decoder.dropout if own.dropout is None else own.dropout
    return replace(config.model, decoder=replace(decoder, tied=tied, dropout=dropout))


def fresh_trunk(config: Config) -> nn.Module:
    """The model that a trunk is taken from, with the initialisation of the recipe.

    The paper's warm-up of ViTs has no dropout of any kind; of a decoder the blocks alone are used.
    """
    model: nn.Module
    if config.model.decoder.size:
        model = configured_decoder(warmup_decoder(config), 1, 1, "warmup", seed=config.seed)
    else:
        no_dropout: dict[str, Any] = {k: 0.0 for k in config.model.args if is_drop_rate(k)}
        model = build_model(config.model, "warmup", seed=config.seed, **no_dropout)
    if next(model.parameters()).is_meta:  # an estimate, which needs no values
        return model
    return initialise(model, config.model.init, seed=config.seed)


def with_dropout(model: nn.Module, rate: float) -> nn.Module:
    """A copy of a model in fp32, all of it trainable, whose dropouts have that rate; paths are never dropped."""
    copied = copy_of(model).float().requires_grad_(True)
    module: Any
    for module in copied.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0
        if hasattr(module, "attn_drop_p"):  # of timm's differential attention
            module.attn_drop_p = rate
    return copied


def sequence_length(config: Config, model: nn.Module | None = None) -> int:
    """Tokens of a warm-up's sequence: what the recipe says, else the decoder's positions or the grid of `model`.

    Raises:
        UserError: a decoder's recipe does not say.
    """
    if config.warmup.length is not None:
        return config.warmup.length
    if model is not None and not config.model.decoder.size:
        rows, columns = family_of(model).grid
        return rows * columns
    if config.model.decoder.positions is None:
        raise UserError("warmup.length is not set, nor model.decoder.positions; set one to the tokens of a sequence")
    return config.model.decoder.positions


class RuleStage(TokenStage[B]):
    """A warm-up: sequences of a rule, whatever the objective.

    A curriculum advances by what each evaluation finds: its level is a metric, `level`, the one that holds from there
    on. Both streams are of that level, so that a level is mastered on sequences of its own.

    Args:
        config: the recipe.
        main_samples: samples of the main stage, that a budget in percent refers to; None when there is none.
        streams: of the rule.
        model: what is trained, around the trunk.
        length: tokens of a sequence, which a budget in tokens counts.
        tokens_per_sample: trunk tokens of a sequence, prefix tokens included.

    Raises:
        UserError: the budget or the schedule cannot be resolved.
    """

    name = "warmup"

    def __init__(
        self,
        config: Config,
        main_samples: int | None,
        streams: RuleStreams,
        model: nn.Module,
        length: int,
        tokens_per_sample: int,
    ):
        super().__init__("warmup", config.warmup, config.warmup.val_rows, config.warmup.eval_every)
        self.seed, self.config, self.streams = config.seed, config.warmup, streams
        self.model, self.length, self.tokens_per_sample = model, length, tokens_per_sample
        self.adapts = streams.adapts
        self.set_lengths(Amount.parse(config.warmup.budget, "warmup.budget"), length, main_samples)

    @property
    def rule(self) -> Rule:
        return self.streams.rule

    def describe(self) -> str:
        objective = {"masked": "masked tokens", "next_token": "the next token", "next_state": "the next state"}
        return f"{objective[self.config.objective]} of {_named(self.rule.spec())}"

    @abstractmethod
    def answers(self, batch: B) -> Tensor:
        """(M,) what is to be predicted in a micro-batch."""

    def chance(self) -> float:
        """Accuracy of the best constant answer on the validation sequences, those of a curriculum's present level."""
        if self.streams.chance is None:
            answers = [self.answers(self.batch("validation", r, r + 1)) for r in range(self.val_samples)]
            counts = torch.cat(answers).unique(return_counts=True)[1]
            self.streams.chance = float(counts.max() / counts.sum()) if len(counts) else 0.0
        return self.streams.chance

    def trained_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Canonical name -> tensor of what may outlive the stage: that is the trunk."""
        return {n: t.detach().cpu() for n, t in _trunk_in(model).state_dict().items()}

    def blocks(self) -> list[nn.Module]:
        return list(_trunk_in(self.model).blocks)

    def metrics(self, totals: Totals) -> dict[str, float]:
        metrics = super().metrics(totals) | {"chance": self.chance()}  # before `follow` sets the next level
        if (level := self.streams.next_level(metrics["accuracy"])) is not None:
            metrics["level"] = level
        return metrics

    def follow(self, metrics: dict[str, float]) -> None:
        if self.adapts:
            self.streams.set_level(int(metrics["level"]))


def _named(rule: dict[str, Any]) -> str:
    """A rule in words: its name, the numbers among its parameters, and the rules within it likewise."""
    numbers = ", ".join(f"{name} {value:g}" for name, value in rule.items() if type(value) in (int, float))
    parts = [part for value in rule.values() for part in (value if isinstance(value, list) else [value])]
    within = ", ".join(_named(part) for part in parts if isinstance(part, dict))
    return rule["name"] + (f" of {within}" if within else "") + (f" ({numbers})" if numbers else "")


def _trunk_in(model: nn.Module) -> Trunk:
    trunk = model.trunk
    assert isinstance(trunk, Trunk)
    return trunk


class WarmupStage(RuleStage[MaskedBatch]):
    """The masked objective: eligible tokens (closers, outputs, ...) are hidden at random and predicted.

    Args:
        config: the recipe.
        main_samples: see `RuleStage`.
        start: model whose trunk and prefix tokens are where the stage starts, copied; None draws fresh ones.

    Raises:
        UserError: the rule cannot fill the model's tokens, hardly any of them would be masked, or the budget cannot be
            resolved.
    """

    def __init__(self, config: Config, main_samples: int | None, start: nn.Module | None = None):
        vit = fresh_trunk(config) if start is None else with_dropout(start, warmup_decoder(config).decoder.dropout)
        length = sequence_length(config, vit)
        streams = RuleStreams(config, length)
        eligible = streams.validation.chunk(0).scored
        if (hidden := config.warmup.mask_prob * config.warmup.global_batch * eligible.sum() / len(eligible)) < 1:
            raise UserError(
                f"warmup.mask_prob={config.warmup.mask_prob:g} masks {hidden:.2g} tokens a step: nothing to learn "
                "from; raise it, or warmup.global_batch"
            )
        sizes = streams.rule.vocab.size, length, config.seed
        model = WarmupModel(vit, *sizes, config.model.grad_checkpointing, config.warmup.middle_runs)
        super().__init__(config, main_samples, streams, model, length, length + model.stem.num_prefix_tokens)
        self.vit = vit

    def batch(self, split: Split, start: int, stop: int) -> MaskedBatch:
        return self._batch(self.streams.of(split), start, stop)

    def _batch(self, stream: RuleStream, start: int, stop: int) -> MaskedBatch:
        """Sequences [start, stop) of a stream."""
        rows = stream.masked_rows(start, stop, self.config.mask_prob)
        positions = np.flatnonzero(rows.masked)
        return MaskedBatch(
            tokens=torch.from_numpy(rows.inputs),
            positions=torch.from_numpy(positions),
            targets=torch.from_numpy(rows.targets.reshape(-1)[positions]),
            weight=float(len(positions)),
        )

    def answers(self, batch: MaskedBatch) -> Tensor:
        return batch.targets

    def losses(self, model: Callable[..., Any], batch: MaskedBatch, step: int) -> Sums:
        """Summed cross-entropy over the masked tokens, in nats, and how many were right."""
        logits = model(batch.tokens, batch.positions).float()
        loss = F.cross_entropy(logits, batch.targets, reduction="sum")
        return Sums(loss, (logits.detach().argmax(-1) == batch.targets).sum())
