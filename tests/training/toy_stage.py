"""A stage with nothing of vision or symbols: a small network fits numbers. It shows what the loop itself does."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vitwarm.config import OptimConfig, RunConfig
from vitwarm.training.batch import Batch, Sums, Totals
from vitwarm.training.checkpoint import Checkpoints
from vitwarm.training.loop import Context
from vitwarm.training.processes import Processes
from vitwarm.training.protocol import Stage
from vitwarm.training.schedule import learning_rate
from vitwarm.training.tracking import Tracker

WIDTH = 5
NEAR = 0.5  # squared errors below it count as right


def optim_config(**changes: Any) -> OptimConfig:
    return OptimConfig(**({"global_batch": 8, "lr": 1e-2, "weight_decay": 0.1} | changes))


@dataclass(kw_only=True, eq=False)
class ToyBatch(Batch):
    """x (B, WIDTH), y (B,), and what each row counts, (B,)."""

    x: Tensor
    y: Tensor
    w: Tensor


class ToyStage(Stage[ToyBatch]):
    """Rows of step s are drawn from a generator seeded with s; the first `short` rows of each step carry no weight."""

    name = "toy"
    best = "score"
    tokens_per_sample = 3
    val_samples = 4

    def __init__(self, optim: OptimConfig, steps: int = 6, eval_every: int = 3, dropout: float = 0.0, short: int = 0):
        self.optim, self.steps, self.eval_every, self.short = optim, steps, eval_every, short
        self.schedule_lengths = (2, 2)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = (nn.Linear(WIDTH, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1))
            self.model = nn.Sequential(*layers)
        self.served: list[int] = []  # steps whose data were asked for
        self.poison: dict[int, float] = {}  # step -> factor of its loss
        self.scores: dict[int, float] = {}  # evaluation -> score, by how often it was asked
        self.found: list[dict[str, Any]] = []
        self.limit = 10**9
        self.evaluations = 0
        self.followed: list[dict[str, float]] = []

    @property
    def samples(self) -> int:
        return self.steps * self.optim.global_batch

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.model.parameters()), "weight_decay": self.optim.weight_decay}]

    def blocks(self) -> list[nn.Module]:
        return []

    def rows(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(self.optim.global_batch, WIDTH, generator=generator)
        weight = torch.ones(self.optim.global_batch)
        weight[: self.short] = 0
        return x, x.sum(1).sin(), weight

    def batches(self, start: int, rank: int, world: int, device_batch: int) -> Generator[ToyBatch, None, None]:
        share = self.optim.global_batch // world
        for step in range(start, self.steps):
            self.served.append(step)
            x, y, weight = self.rows(step)
            for first in range(rank * share, (rank + 1) * share, device_batch):
                piece = slice(first, first + device_batch)
                yield ToyBatch(x=x[piece], y=y[piece], w=weight[piece], weight=float(weight[piece].sum()))

    def losses(self, model: Callable[..., Any], batch: ToyBatch, step: int) -> Sums:
        error = (model(batch.x).squeeze(1) - batch.y) ** 2
        loss = (error * batch.w).sum()
        factor = self.poison.get(step, 1.0)
        if factor == "gradient":  # a finite loss whose gradient is infinite: d sqrt(z) / dz at z = 0
            loss = loss + (loss * 0).sqrt()
        elif factor != 1.0:
            loss = loss * factor
        return Sums(loss, ((error.detach() < NEAR) * batch.w).sum())

    def evaluate(self, model: nn.Module, rank: int, world: int, device_batch: int) -> Totals:
        score = self.scores.get(self.evaluations, 0.5)
        self.evaluations += 1
        return {"score": 4 * score, "weight": 4.0} if rank == 0 else {"score": 0.0, "weight": 0.0}

    def follow(self, metrics: dict[str, float]) -> None:
        self.followed.append(metrics)

    def example(self) -> tuple[ToyBatch, int]:
        x, y, w = (t[:2] for t in self.rows(0))
        return ToyBatch(x=x, y=y, w=w, weight=2.0), 2

    def events(self) -> list[dict[str, Any]]:
        found, self.found = self.found, []
        return found

    def check_events(self, damaged: list[str]) -> None:
        from vitwarm.errors import UserError

        if len(damaged) > self.limit:
            raise UserError(f"{len(damaged)} damaged")


def toy_context(folder: Path, stop: list[int] | None = None, log_bytes: int = 0, **run: Any) -> Context:
    """A context of one process; `run` are keys of RunConfig."""
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    config = RunConfig(**({"log_every": 1, "checkpoint_every": 2, "keep_last": 2} | run))
    folder.mkdir(parents=True, exist_ok=True)
    return Context(
        accelerator=accelerator,
        processes=Processes(0, 1, accelerator.device),
        run=config,
        seed=0,
        recipe_hash="h",
        tracker=Tracker(folder, log_bytes=log_bytes),
        checkpoints=Checkpoints(folder / "checkpoints", config.keep_last),
        stop=[] if stop is None else stop,
    )


def reference(stage: ToyStage, decay: float | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """The same training as a bare loop over whole batches: final weights, and their moving average by its formula."""
    model, optim = stage.model, stage.optim
    adamw = torch.optim.AdamW(
        model.parameters(), lr=1.0, betas=tuple(optim.betas), eps=optim.eps, weight_decay=optim.weight_decay
    )
    mean = {n: t.clone() for n, t in model.state_dict().items()}
    for step in range(stage.steps):
        for group in adamw.param_groups:
            group["lr"] = learning_rate(step, stage.steps, optim, *stage.schedule_lengths)
        x, y, w = stage.rows(step)
        loss = (((model(x).squeeze(1) - y) ** 2) * w).sum() / w.sum()
        adamw.zero_grad()
        loss.backward()
        if optim.clip_grad:
            total = sum(float((p.grad**2).sum()) for p in model.parameters()) ** 0.5
            for p in model.parameters():
                p.grad *= min(1.0, optim.clip_grad / (total + 1e-6))
        adamw.step()
        if decay is not None:
            mean = {n: decay * mean[n] + (1 - decay) * t.detach() for n, t in model.state_dict().items()}
    return {n: t.detach().clone() for n, t in model.state_dict().items()}, mean if decay is not None else None
