"""Stage `warmup`: masked-token prediction on sequences of a rule, through a timm trunk (arXiv 2511.13945)."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitwarm.amounts import Amount
from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.procedural import RuleStream, make_rule
from vitwarm.procedural.keys import keyed_rng
from vitwarm.training.protocol import Batch
from vitwarm.training.schedule import check_lengths
from vitwarm.transfer import initialise
from vitwarm.trunk import SymbolStem, Trunk, build_model, is_drop_rate, token_grid

AHEAD = 4  # steps that the background thread may be ahead of the loop


class WarmupModel(nn.Module):
    """Symbol stem -> trunk -> linear head; only the trunk outlives the stage.

    Args:
        vit: timm model whose trunk is trained; its modules are used, not copied.
        vocab_size: K.
        length: N.
        seed: root seed of the stem's frozen tables and of the head's fresh weights.
        grad_checkpointing: see `Trunk`.
    """

    def __init__(self, vit: nn.Module, vocab_size: int, length: int, seed: int, grad_checkpointing: bool = False):
        super().__init__()
        self.stem = SymbolStem(vit, vocab_size, length, seed)
        self.trunk = Trunk(vit, grad_checkpointing)
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


class WarmupStage:
    """See `vitwarm.training.protocol.Stage`.

    Args:
        config: the recipe.
        main_samples: samples of the main stage, that a budget in percent refers to; None when there is none.

    Raises:
        UserError: the rule cannot fill the model's tokens, or the budget cannot be resolved.
    """

    name = "warmup"
    best = None

    def __init__(self, config: Config, main_samples: int | None):
        self.optim, self.seed, self.config = config.warmup, config.seed, config.warmup
        still = {k: 0.0 for k in config.model.args if is_drop_rate(k)}  # the paper's warm-up has no dropout of any kind
        self.vit = initialise(
            build_model(config.model, "warmup", seed=config.seed, **still), config.model.init, seed=config.seed
        )
        rows, columns = token_grid(self.vit)
        self.length = config.warmup.length or rows * columns
        try:
            self.rule = make_rule(**config.warmup.rule)
            self.stream = RuleStream(self.rule, config.seed, "train", self.length)
            self.val_stream = RuleStream(self.rule, config.seed, "validation", self.length)
            self.val_stream.chunk(0)
        except ValueError as error:
            raise UserError(f"warmup.rule: {error}") from error
        self.model = WarmupModel(
            self.vit, self.rule.vocab.size, self.length, config.seed, config.model.grad_checkpointing
        )
        self.tokens_per_sample = self.length + self.model.stem.num_prefix_tokens
        self.steps = Amount.parse(config.warmup.budget, "warmup.budget").steps(
            global_batch=self.optim.global_batch, samples_of_whole=main_samples, tokens_per_sample=self.length
        )
        self.schedule_lengths = tuple(
            Amount.parse(getattr(self.optim, name), f"warmup.{name}").steps(
                global_batch=self.optim.global_batch, steps_of_whole=self.steps, tokens_per_sample=self.length
            )
            for name in ("lr_warmup", "cooldown")
        )
        check_lengths(self.name, self.steps, self.optim, *self.schedule_lengths)
        self.eval_every = config.warmup.eval_every

    def check_device_batch(self, size: int) -> None:
        """Any number of sequences will do."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All decay alike in the paper; with `decay_all=false`, norms, biases and prefix tokens do not."""
        decayed, free = [], []
        for name, p in self.model.named_parameters():
            decays = self.optim.decay_all or (p.ndim > 1 and name != "stem.prefix")
            (decayed if decays else free).append(p)
        groups = [{"params": decayed, "weight_decay": self.optim.weight_decay}, {"params": free, "weight_decay": 0.0}]
        return [g for g in groups if g["params"]]

    def blocks(self) -> list[nn.Module]:
        return list(self.model.trunk.blocks)

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

    def batches(self, start: int, rank: int, world: int, device_batch: int) -> Generator[Batch, None, None]:
        """Step s takes rows [s * B, (s + 1) * B) of the stream; one thread writes ahead of the loop."""
        share = self.optim.global_batch // world
        first_rows = (
            step * self.optim.global_batch + rank * share + offset
            for step in range(start, self.steps)
            for offset in range(0, share, device_batch)
        )
        with ThreadPoolExecutor(1, thread_name_prefix="rule") as pool:
            pending: deque = deque()
            try:
                for row in first_rows:
                    pending.append(pool.submit(self._batch, self.stream, row, row + device_batch))
                    if len(pending) > AHEAD:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def losses(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        """Summed cross-entropy over the masked tokens, in nats, and how many were right."""
        logits = model(batch["symbols"], batch["positions"]).float()
        targets = batch["targets"]
        return {
            "loss": F.cross_entropy(logits, targets, reduction="sum"),
            "accuracy": (logits.detach().argmax(-1) == targets).sum(),
        }

    def evaluate(self, model: nn.Module, rank: int, world: int, device_batch: int) -> dict[str, float]:
        device = next(model.parameters()).device
        sums = {"loss": 0.0, "accuracy": 0.0, "weight": 0.0}
        first, last = (self.config.val_rows * r // world for r in (rank, rank + 1))
        for row in range(first, last, device_batch):
            batch = self._batch(self.val_stream, row, min(row + device_batch, last))
            moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            for name, value in self.losses(model, moved, 0).items():
                sums[name] += value.item()
            sums["weight"] += batch["weight"]
        return sums

    def example(self) -> tuple[Batch, int]:
        return self._batch(self.val_stream, 0, 1), 1

    def events(self) -> list[dict[str, Any]]:
        return []

    def check_events(self, damaged: list[str]) -> None:
        """A rule's sequences cannot be damaged."""
