"""Many seeds of a small model train at once: their weights are stacked, and each operation works on all of them.

Where a tiny model leaves a processor idle between its operations, ten of them together cost little more than one. Each
seed sees its own batches and ends where it would have ended alone, but for the order of floating-point sums.
"""

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from vitwarm.errors import Interrupted, UserError
from vitwarm.stages.tokens import TokenStage
from vitwarm.training.batch import Batch
from vitwarm.training.schedule import learning_rate
from vitwarm.trunk import Decoder


class Ensemble:
    """The same stage under several seeds, trained as one; their models hold the result.

    Args:
        stages: alike in all but the seed; each has its model.
        device: where they train.
        stop: list that a signal handler fills; training ends early, between two steps.

    Raises:
        UserError: a setting that does not work on stacked weights.
    """

    def __init__(self, stages: Sequence[TokenStage], device: torch.device, stop: list[int] | None = None):
        self.stages, self.device, self.stop = stages, device, [] if stop is None else stop
        self.stage, optim = stages[0], stages[0].optim
        models = [stage.model.to(device).train() for stage in stages]
        for what, found in (
            ("ema", optim.ema),
            ("compile", optim.compile),
            ("a curriculum", self.stage.adapts),  # rows of the seeds would differ in their number of positions
            ("precision=bf16", optim.precision == "bf16"),
            ("grad_checkpointing", any(getattr(m, "grad_checkpointing", False) for m in models[0].modules())),
            ("dropout", any(isinstance(m, torch.nn.Dropout) and m.p for m in models[0].modules())),
        ):
            if found:
                raise UserError(f"{self.stage.section}: an ensemble of seeds works without {what}; run the seeds alone")
        for decoder in (m for m in models[0].modules() if isinstance(m, Decoder)):
            decoder.max_logits = sys.maxsize  # a chunk's gradient is its own, which vmap cannot stack
        self.parameters, self.buffers = stack_module_state(models)
        names = {p: n for n, p in models[0].named_parameters()}
        groups = [
            g | {"params": [self.parameters[names[p]] for p in g["params"]]} for g in stages[0].parameter_groups()
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=tuple(optim.betas), eps=optim.eps, fused=True)

    def train(self, report: Callable[[int, list[dict[str, float]]], None]) -> None:
        """Train from the first step to the last; `report` gets the step and each seed's metrics at each evaluation."""
        stage, batch = self.stage, self.stage.optim.global_batch
        with contextlib.ExitStack() as held:
            streams = [held.enter_context(contextlib.closing(s.batches(0, 0, 1, batch))) for s in self.stages]
            for step in range(stage.steps):
                self.step(step, [next(stream) for stream in streams])
                if self.stop:
                    raise Interrupted(f"stopped by a signal at {stage.name} step {step + 1}; an ensemble starts anew")
                if (step + 1) % stage.eval_every == 0 or step + 1 == stage.steps:
                    report(step + 1, self.evaluate())

    def step(self, step: int, batches: list[Batch]) -> Tensor:
        """One optimiser step of all seeds; (S,) losses."""
        stage, optim = self.stage, self.stage.optim
        lr = learning_rate(step, stage.steps, optim, *stage.schedule_lengths)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        weight = torch.tensor([max(b.weight, 1.0) for b in batches], device=self.device)

        def loss_of(parameters: dict[str, Tensor], buffers: dict[str, Tensor], tensors: dict[str, Any]) -> Tensor:
            def model(*args: Any, **more: Any) -> Any:
                return functional_call(stage.model, (parameters, buffers), args, more)

            return stage.losses(model, replace(batches[0], **tensors), step).loss

        losses = vmap(loss_of)(self.parameters, self.buffers, self._stacked(batches)) / weight
        losses.sum().backward()  # a seed's loss depends on its own weights alone
        if optim.clip_grad:
            self._clip(optim.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return losses.detach()

    def _stacked(self, batches: list[Batch]) -> dict[str, Tensor]:
        """Tensors of all seeds, one behind the other; where positions are fewer, weight 0 fills them up."""
        stacked = {}
        for name in batches[0].tensors():
            parts = [b.tensors()[name] for b in batches]
            widest = max(p.shape[1] for p in parts)
            parts = [p if p.shape[1] == widest else F.pad(p, (0, widest - p.shape[1])) for p in parts]
            stacked[name] = torch.stack(parts).to(self.device)
        return stacked

    def _clip(self, largest: float) -> None:
        """Each seed's gradient on its own, as `clip_grad_norm_` does."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]  # what is frozen has none
        norm = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)  # (S,)
        scale = (largest / (norm + 1e-6)).clamp(max=1.0)
        for g in gradients:
            g.mul_(scale.view(-1, *[1] * (g.ndim - 1)))

    def unstack(self) -> None:
        """Copy the weights back into the stages' own models."""
        for i, stage in enumerate(self.stages):
            stage.model.load_state_dict({n: p.detach()[i] for n, p in (self.parameters | self.buffers).items()})

    def evaluate(self) -> list[dict[str, float]]:
        """Metrics of each seed on its own validation rows."""
        self.unstack()
        found = []
        for stage in self.stages:
            with torch.inference_mode():
                sums = stage.evaluate(stage.model.eval(), 0, 1, stage.optim.global_batch)
            stage.model.train()
            found.append(stage.metrics(sums))
        return found
