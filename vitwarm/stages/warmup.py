"""Stage `warmup`: a trunk learns from sequences of a rule; here by masked-token prediction (arXiv 2511.13945)."""

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitwarm.amounts import Amount
from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.keys import keyed_rng
from vitwarm.procedural import Rule, RuleStream, make_rule
from vitwarm.procedural.composite import Curriculum
from vitwarm.stages.tokens import Split, TokenStage
from vitwarm.training.protocol import Batch
from vitwarm.trunk import SymbolStem, Trunk, build_model, configured_decoder, family_of, initialise, is_drop_rate


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
        self.head = nn.Linear(self.trunk.width, vocab_size)
        generator = torch.Generator().manual_seed(int(keyed_rng(seed, "init", "warmup", "head").integers(2**63)))
        nn.init.trunc_normal_(self.head.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, symbols: Tensor, positions: Tensor) -> Tensor:
        """Logits where they are asked for.

        Args:
            symbols: (B, N) ids.
            positions: (M,) indices into the flattened (B * N) symbols.

        Returns:
            (M, K).
        """
        features = self.trunk(self.stem(symbols))[:, self.stem.num_prefix_tokens :]  # prefix outputs are dropped
        return self.head(features.flatten(0, 1)[positions])


class RuleStage(TokenStage):
    """A warm-up: rows of a rule, whatever the objective. Subclasses set the model behind them.

    A curriculum moves on by what each evaluation finds: its level is a metric, `level`, the one that holds from there
    on. Both streams are of that level, so that a level is mastered on rows of its own.

    Args:
        config: the recipe.
        main_samples: samples of the main stage, that a budget in percent refers to; None when there is none.

    Raises:
        UserError: the rule cannot fill the model's tokens, or the budget cannot be resolved.
    """

    name = "warmup"

    def __init__(self, config: Config, main_samples: int | None):
        super().__init__("warmup", config.warmup, config.warmup.val_rows, config.warmup.eval_every)
        self.seed, self.config = config.seed, config.warmup
        try:
            self.rule = make_rule(**config.warmup.rule)
        except ValueError as error:
            raise UserError(f"warmup.rule: {error}") from error
        self.vit = self.fresh(config)
        self.length = config.warmup.length or self.own_length(config)
        try:
            self._read(self.rule)
            self.val_stream.chunk(0)
        except ValueError as error:
            raise UserError(f"warmup.rule: {error}") from error
        self.model = self.build(config)
        self.set_lengths(Amount.parse(config.warmup.budget, "warmup.budget"), self.length, main_samples)

    def _read(self, rule: Rule) -> None:
        self.rule, self.adapts = rule, isinstance(rule, Curriculum)
        self.stream, self.val_stream = (
            RuleStream(rule, self.seed, split, self.row_tokens()) for split in ("train", "validation")
        )

    def fresh(self, config: Config) -> nn.Module:
        """The model that the trunk is taken from; the paper's warm-up of ViTs has no dropout of any kind."""
        if config.model.decoder.size:
            model = configured_decoder(config.model, 1, 1, "warmup", seed=config.seed)  # for its blocks alone
        else:
            still = {k: 0.0 for k in config.model.args if is_drop_rate(k)}
            model = build_model(config.model, "warmup", seed=config.seed, **still)
        return initialise(model, config.model.init, seed=config.seed)

    def own_length(self, config: Config) -> int:
        """Tokens of a row where the recipe does not say."""
        if config.model.decoder.size:
            if config.model.decoder.positions is None:
                raise UserError("how long are the rows? set warmup.length (or model.decoder.positions)")
            return config.model.decoder.positions
        rows, columns = family_of(self.vit).grid
        return rows * columns

    def row_tokens(self) -> int:
        """Symbols of the rule in a row of `length` tokens."""
        return self.length

    @abstractmethod
    def build(self, config: Config) -> nn.Module:
        """What is trained; sets `tokens_per_sample`."""

    def hand_on(self, model: nn.Module) -> dict[str, Tensor]:
        """Canonical name -> tensor of what may outlive the stage: the trunk."""
        return {n: t.detach().cpu() for n, t in model.trunk.state_dict().items()}

    def blocks(self) -> list[nn.Module]:
        return list(self.model.trunk.blocks)

    def metrics(self, totals: dict[str, float]) -> dict[str, float]:
        metrics = super().metrics(totals)
        if isinstance(self.rule, Curriculum):
            metrics["level"] = self.rule.next_level(metrics["accuracy"], self.row_tokens())
        return metrics

    def follow(self, metrics: dict[str, float]) -> None:
        if isinstance(self.rule, Curriculum) and metrics["level"] != self.rule.level:
            self._read(self.rule.at(metrics["level"]))


class WarmupStage(RuleStage):
    """The masked objective: closers, outputs, whatever the rule scores, hidden at random and to be named."""

    def build(self, config: Config) -> nn.Module:
        sizes = self.rule.vocab.size, self.length, config.seed
        model = WarmupModel(self.vit, *sizes, config.model.grad_checkpointing, config.warmup.middle_runs)
        self.tokens_per_sample = self.length + model.stem.num_prefix_tokens
        return model

    def batch(self, split: Split, start: int, stop: int) -> Batch:
        return self._batch(self.stream if split == "train" else self.val_stream, start, stop)

    def _batch(self, stream: RuleStream, start: int, stop: int) -> Batch:
        """Rows [start, stop) of a stream, with the indices of what is asked and the answers."""
        rows = stream.masked_rows(start, stop, self.config.mask_prob)
        positions = np.flatnonzero(rows.masked)
        return {
            "symbols": torch.from_numpy(rows.inputs),
            "positions": torch.from_numpy(positions),
            "targets": torch.from_numpy(rows.targets.reshape(-1)[positions]),
            "weight": float(len(positions)),
        }

    def losses(self, model: nn.Module, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        """Summed cross-entropy over the masked tokens, in nats, and how many were right."""
        logits = model(batch["symbols"], batch["positions"]).float()
        targets = batch["targets"]
        return {
            "loss": F.cross_entropy(logits, targets, reduction="sum"),
            "accuracy": (logits.detach().argmax(-1) == targets).sum(),
        }
