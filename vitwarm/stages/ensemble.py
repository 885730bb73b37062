"""Many seeds of a small model train at once: their weights are stacked, and each operation works on all of them.

Where a tiny model leaves a processor idle between its operations, ten of them together cost little more than one. Each
seed sees its own batches and ends where it would have ended alone, but for the order of floating-point sums.

Shapes: S seeds; otherwise those of the stage.
"""

import contextlib
import copy
import json
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from vitwarm.errors import UserError
from vitwarm.reading import read_json_lines
from vitwarm.stages.batches import TokenBatch
from vitwarm.stages.tokens import TokenStage
from vitwarm.training.batch import Batch, Sums, Totals
from vitwarm.training.elementwise import is_elementwise
from vitwarm.training.protocol import Stage
from vitwarm.trunk import Decoder


class EnsembleStage(Stage["EnsembleBatch"]):
    """The same stage under several seeds as one stage of the loop; see `vitwarm.training.protocol.Stage`.

    The loss is the mean over the seeds of each one's mean loss. Its gradient is that of their sum, so that each seed's
    weights get the gradient that they would get alone; gradients are clipped seed by seed.

    | metric | over |
    |---|---|
    | the stage's own, such as `loss` | mean over the seeds |
    | `seedN/loss` ... | seed N |

    Args:
        stages: equal in all but the seed; each has its model.
        seeds: of these stages.

    Raises:
        UserError: a stage or a setting that does not work on stacked weights.
    """

    best = None

    def __init__(self, stages: Sequence[Stage[Any]], seeds: Sequence[int]):
        self.stages = [stage for stage in stages if isinstance(stage, TokenStage) and stage.stackable]
        if len(self.stages) < len(stages):
            raise UserError(
                f"an ensemble of seeds stacks sequences of one length, which stage {stages[0].name} of this recipe "
                "does not have; run the seeds one by one"
            )
        self.seeds, self.stage = list(seeds), self.stages[0]
        stage, optim = self.stage, self.stage.optim
        modules = list(stage.model.modules())
        for what, found in (
            ("ema", optim.ema),
            ("compile", optim.compile),
            ("a curriculum", stage.adapts),  # each seed would ask for a number of positions of its own
            ("precision=bf16", optim.precision == "bf16"),
            ("grad_checkpointing", any(getattr(m, "grad_checkpointing", False) for m in modules)),
            (f"optimizer={optim.optimizer}, which is not elementwise", not is_elementwise(optim)),
            ("dropout", any(isinstance(m, nn.Dropout) and m.p for m in modules)),
        ):
            if found:
                raise UserError(f"{stage.section}: an ensemble of seeds works without {what}; run the seeds alone")
        for decoder in (m for m in modules if isinstance(m, Decoder)):
            decoder.max_logits = sys.maxsize  # a chunk's gradient is its own, which vmap cannot stack
        self.name, self.optim, self.steps = stage.name, optim, stage.steps
        self.schedule_lengths, self.eval_every = stage.schedule_lengths, stage.eval_every
        self.tokens_per_sample, self.val_samples = stage.tokens_per_sample, stage.val_samples

    def describe(self) -> str:
        return f"{self.stage.describe()}; {len(self.seeds)} seeds at once"

    @property
    def samples(self) -> int:
        """Sequences that each seed trains on, repeats counted."""
        return self.stage.samples

    def start_model(self) -> nn.Module:
        """The first seed's model with the parameters and buffers of all in place of its own, (S, ...) each.

        It is made here and no earlier, because only now the stages' models have the weights that they start from.
        """
        self.model = copy.deepcopy(self.stage.model)
        for name, module in self.model.named_modules():
            others = [stage.model.get_submodule(name) for stage in self.stages]
            for own, p in module._parameters.items():
                if p is not None:
                    values = torch.stack([getattr(other, own).detach() for other in others])
                    module._parameters[own] = nn.Parameter(values, requires_grad=p.requires_grad)
            for own, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[own] = torch.stack([getattr(other, own) for other in others])
        return self.model

    def members(self, trained: nn.Module) -> list[nn.Module]:
        """The seeds' own models, with the weights of `trained`."""
        tensors = dict(trained.named_parameters()) | dict(trained.named_buffers())
        for i, stage in enumerate(self.stages):
            stage.model.to(next(iter(tensors.values())).device)
            own = dict(stage.model.named_parameters()) | dict(stage.model.named_buffers())
            with torch.no_grad():
                for name, tensor in own.items():
                    tensor.copy_(tensors[name][i])
        return [stage.model for stage in self.stages]

    def check_device_batch(self, size: int) -> None:
        if size != self.optim.global_batch:
            raise UserError(
                "an ensemble of seeds takes its batch at once; leave run.device_batch out, or run the seeds alone"
            )

    def parameter_groups(self) -> list[dict[str, Any]]:
        names = {p: n for n, p in self.stage.model.named_parameters()}
        stacked = dict(self.model.named_parameters())
        return [g | {"params": [stacked[names[p]] for p in g["params"]]} for g in self.stage.parameter_groups()]

    def blocks(self) -> list[nn.Module]:
        return []

    def clip(self, parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
        """Clip each seed's gradient on its own; returns the largest of the norms."""
        gradients = [p.grad for p in parameters if p.grad is not None]  # what is frozen has none
        norm: Tensor = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)  # (S,)
        if largest != float("inf"):
            scale = (largest / (norm + 1e-6)).clamp(max=1.0)
            for g in gradients:
                g.mul_(scale.view(-1, *[1] * (g.ndim - 1)))
        return norm.max()

    def batches(self, start: int, rank: int, world: int, device_batch: int) -> Generator["EnsembleBatch", None, None]:
        with contextlib.ExitStack() as held:
            streams = [
                held.enter_context(contextlib.closing(s.batches(start, 0, 1, device_batch))) for s in self.stages
            ]
            for batches in zip(*streams, strict=True):
                yield self._stacked(batches)

    def _stacked(self, batches: Sequence[Batch]) -> "EnsembleBatch":
        """The seeds' batches as one; those with fewer positions are filled up with weight 0."""
        weights = torch.tensor([max(b.weight, 1.0) for b in batches])
        if any("positions" in batch.tensors() for batch in batches):
            batches = [_with_positions(batch) for batch in batches]
        stacked = {}
        for name in batches[0].tensors():
            parts = [batch.tensors()[name] for batch in batches]
            widest = max(p.shape[1] for p in parts)
            stacked[name] = torch.stack([F.pad(p, (0, widest - p.shape[1])) for p in parts])
        return EnsembleBatch(weight=1.0, template=batches[0], stacked=stacked, weights=weights)

    def losses(self, model: Callable[..., Any], batch: "EnsembleBatch", step: int) -> Sums:
        assert isinstance(model, nn.Module)

        def of_seed(parameters: dict[str, Tensor], buffers: dict[str, Tensor], tensors: dict[str, Any]) -> Any:
            def call(*args: Any, **more: Any) -> Any:
                return functional_call(self.stage.model, (parameters, buffers), args, more)

            sums = self.stage.losses(call, replace(batch.template, **tensors), step)
            return sums.loss, sums.correct

        parameters: dict[str, Tensor] = dict(model.named_parameters())
        sums = vmap(of_seed)(parameters, dict(model.named_buffers()), batch.stacked)
        loss, correct = (total / batch.weights for total in sums)  # (S,) each
        total = loss.sum()  # a seed's loss depends on its own weights alone
        return Sums(loss.mean().detach() + (total - total.detach()), correct.mean())

    def evaluate(self, model: nn.Module, rank: int, world: int, device_batch: int) -> Totals:
        """`seedN/SUM` for each sum of seed N, over its own validation sequences."""
        found: Totals = {}
        for seed, stage, own in zip(self.seeds, self.stages, self.members(model), strict=True):
            sums = stage.evaluate(own.eval(), rank, world, device_batch)
            found |= {f"seed{seed}/{name}": value for name, value in sums.items()}
        return found

    def metrics(self, totals: Totals) -> dict[str, float]:
        each = {
            seed: stage.metrics(_of_seed(totals, seed)) for seed, stage in zip(self.seeds, self.stages, strict=True)
        }
        means = {name: sum(found[name] for found in each.values()) / len(each) for name in each[self.seeds[0]]}
        return means | {f"seed{seed}/{name}": value for seed, found in each.items() for name, value in found.items()}

    def example(self) -> tuple["EnsembleBatch", int]:
        examples = [stage.example() for stage in self.stages]
        return self._stacked([batch for batch, _ in examples]), examples[0][1]

    def events(self) -> list[dict[str, Any]]:
        return [event for stage in self.stages for event in stage.events()]

    def check_events(self, damaged: list[str]) -> None:
        self.stage.check_events(damaged)

    def outcomes(self, result: dict[str, Any]) -> list[dict[str, Any]]:
        """Each seed's part of the ensemble's outcome: its metrics, and its share of seconds and FLOPs."""
        share = {name: result[name] / len(self.seeds) for name in ("seconds", "flops")}
        return [result | share | {"metrics": _of_seed(result["metrics"], seed)} for seed in self.seeds]


@dataclass(kw_only=True, eq=False)
class EnsembleBatch(Batch):
    """The batches of all seeds.

    Attributes:
        template: a batch of the stage, whose other fields all seeds share.
        stacked: its tensors, (S, ...) each, by field.
        weights: (S,), how many predictions each seed's loss sums over. `weight` is 1: the loss is a mean already.
    """

    template: Batch
    stacked: dict[str, Tensor]
    weights: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> "EnsembleBatch":
        stacked = {name: change(tensor) for name, tensor in self.stacked.items()}
        return replace(self, stacked=stacked, weights=change(self.weights))


def _with_positions(batch: Batch) -> Batch:
    """A next-token batch that names its positions, also where it predicts at all of them; any other as it is."""
    if not isinstance(batch, TokenBatch) or batch.positions is not None:
        return batch
    return replace(batch, positions=torch.arange(batch.tokens.shape[1]).expand(batch.tokens.shape))


def seed_log(log: Path, seed: int) -> str:
    """The evaluations of one seed as a log of its own, from that of an ensemble."""
    entries = read_json_lines(log)
    return "".join(
        json.dumps({name: e[name] for name in ("event", "stage", "step", "run_step")} | _of_seed(e, seed)) + "\n"
        for e in entries
        if e["event"] == "eval"
    )


def _of_seed(values: dict[str, Any], seed: int) -> dict[str, Any]:
    prefix = f"seed{seed}/"
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
