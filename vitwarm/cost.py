"""What a recipe will cost, before it runs: samples, tokens, FLOPs, time, storage, memory.

It needs no GPU, and of the data only text.

FLOPs and activations come from the real model on fake tensors, which have shapes and no numbers. The time rests on an
assumption, the model FLOP utilisation (MFU), that stands beside them.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vitwarm.assembly import assemble
from vitwarm.config import Config, ModelConfig, OptimConfig
from vitwarm.errors import UserError
from vitwarm.recipe import recipe_hash
from vitwarm.training.loop import device_batch_size
from vitwarm.training.meters import PEAK_FLOPS, forward_flops, known_card
from vitwarm.training.optimizers import state_bytes
from vitwarm.training.protocol import Stage

_FAKE = FakeTensorMode(allow_non_fake_inputs=True)  # one for all: fake tensors of two modes do not mix

MFU = 0.4  # assumed share of the device's peak that the model's FLOPs reach

# Peaks without tensor cores in FLOP/s, from the vendors' data sheets: what fp32 matrix products get by default.
PEAK_FP32 = {
    "A100": 19.5e12,
    "A40": 37.4e12,
    "A10": 31.2e12,
    "L4": 30.3e12,
    "L40S": 91.6e12,
    "V100": 15.7e12,
    "H100": 66.9e12,
    "H100 PCIe": 51.2e12,
    "H100 NVL": 60e12,
    "GH200": 66.9e12,
    "H200": 66.9e12,
    "B200": 75e12,
    "RTX 4090": 82.6e12,
    "RTX 3090": 35.6e12,
}
# Of one core, measured with products of matrices (AMD Zen 4, AVX-512). Tiny decoders reach 0.4 of it, and 0.8 where
# their fast path leaves much out (docs/results/lab_speed.md).
PEAK_CPU = {"CPU core": 117e9}


@dataclass(frozen=True)
class StageCost:
    """One line of the estimate.

    Attributes:
        name: stage, or `evaluation`.
        steps: optimiser steps; 0 for the evaluation.
        samples: sequences, presentations of images, or evaluated images.
        tokens: trunk tokens, prefix tokens included.
        flops: matrix products, forward and backward; recomputation by checkpointing not counted.
        seconds: on all devices together, under the assumed utilisation.
    """

    name: str
    steps: int
    samples: int
    tokens: int
    flops: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What `estimate` found; `str()` is the report.

    Attributes:
        lines: one a stage, in order.
        facts: label -> text, for the lower part of the report.
    """

    title: str
    lines: list[StageCost]
    facts: dict[str, str]

    @property
    def seconds(self) -> float:
        return sum(line.seconds for line in self.lines)

    def share(self, what: str) -> float | None:
        """The warm-up's part of the main stage's `samples`, `flops` or `seconds`; None without either."""
        by_name = {line.name: getattr(line, what) for line in self.lines if line.name != "evaluation"}
        warmup = by_name.pop("warmup", None)
        return warmup / next(iter(by_name.values())) if by_name and warmup is not None else None

    def __str__(self) -> str:
        head = f"{'stage':<12}{'steps':>10}{'samples':>15}{'tokens':>18}{'FLOPs':>11}{'time':>10}"
        rows = [
            f"{c.name:<12}{c.steps or '':>10}{c.samples:>15,}{c.tokens:>18,}{c.flops:>11.3g}{_time(c.seconds):>10}"
            for c in self.lines
        ]
        width = max(map(len, self.facts))
        return "\n".join(
            [self.title, "", head, *rows, f"{'all':<12}{'':>54}{_time(self.seconds):>10}", ""]
            + [f"{label:<{width}}  {text}" for label, text in self.facts.items()]
        )


def estimate(config: Config, gpus: int, device: str, mfu: float = MFU, train_images: int | None = None) -> Estimate:
    """Samples, tokens, FLOPs, time, storage and memory of a recipe.

    Args:
        config: the recipe.
        gpus: devices, one process each.
        device: a name of `PEAK_FLOPS` or `PEAK_CPU`, in any case.
        mfu: assumed share of the device's peak that the model's FLOPs reach.
        train_images: size of the training set; None counts the shards, or takes ImageNet-1k's when they are not here.

    Raises:
        UserError: unknown device, impossible numbers, or an unknown number of images.
    """
    devices = PEAK_FLOPS | PEAK_CPU
    name = next((known for known in devices if known.lower() == device.lower().replace("_", " ")), None)
    if name is None:
        known = ", ".join(k.lower().replace(" ", "_") for k in devices)
        raise UserError(f"device={device} is not known; known: {known}")
    if train_images is not None and train_images < 1:
        raise UserError(f"train_images is at least 1, not {train_images}")
    if gpus < 1 or not 0 < mfu <= 1:
        raise UserError(f"gpus is at least 1 and mfu lies in (0, 1], not gpus={gpus} mfu={mfu:g}")

    def seconds(flops: float, optim: OptimConfig) -> float:
        return _seconds(flops, optim, config.model, name, gpus, mfu)

    experiment = assemble(config, gpus, estimate=True, train_images=train_images)
    weights = sum(p.numel() for p in experiment.model.parameters())
    lines, facts = [], dict(experiment.main.estimate_facts()) if experiment.main else {}
    for stage in experiment.stages:
        flops = 3 * _flops(stage)
        shown = stage.val_samples * math.ceil(stage.steps / stage.eval_every)
        costs = [(stage.name, stage.steps, stage.samples, flops * stage.samples)]
        if stage is experiment.main:  # those of a warm-up are too few to count
            costs.append(("evaluation", 0, shown, flops / 3 * shown))
        lines += [
            StageCost(name, steps, count, count * stage.tokens_per_sample, work, seconds(work, stage.optim))
            for name, steps, count, work in costs
        ]
    trained = {line.name: line for line in lines if line.name != "evaluation"}
    if experiment.main and (rate := trained[experiment.main.name].samples / trained[experiment.main.name].seconds):
        unit = experiment.main.sample_unit
        facts["data rate"] = f"{rate:,.0f} {unit}, {rate / gpus:,.0f} for each device"
    facts |= _storage(config, weights)
    memory = (_memory(stage, config, gpus, name in PEAK_FLOPS) for stage in experiment.stages)
    facts["memory"] = max(memory, key=lambda m: m[0])[1]
    facts["assumed"] = f"MFU {mfu:g} of {_peaks(config, lines, name)}, {_origin(name)}; no waiting for data"
    found = Estimate(_title(config, gpus, name, weights), lines, facts)
    shares = {label: found.share(what) for what, label in _SHARES.items()}
    if parts := [f"{100 * share:.2f} % of its {label}" for label, share in shares.items() if share is not None]:
        facts["the warm-up"] = f"on top of the main stage: {', '.join(parts)}"
    return found


def expected_seconds(stage: Stage[Any], model: ModelConfig, device: torch.device, world: int) -> float | None:
    """How long the training steps of a stage take at `MFU`; None on a device whose peak is not known.

    Args:
        stage: with its model.
        model: the recipe's.
        device: of each process.
        world: processes.
    """
    card = known_card(device)
    if card is None:
        return None
    return _seconds(3 * _flops(stage) * stage.samples, stage.optim, model, card, world, MFU)


def _seconds(flops: float, optim: OptimConfig, model: ModelConfig, card: str, gpus: int, mfu: float) -> float:
    recomputed = 4 / 3 if model.grad_checkpointing else 1  # the blocks' forward pass once more
    return flops * recomputed / (gpus * mfu * _peak(card, optim.precision))


_SHARES = {"samples": "samples", "flops": "FLOPs", "seconds": "time"}


def _title(config: Config, gpus: int, device: str, weights: int) -> str:
    name = config.model.decoder.size or config.model.name
    return f"{config.name} (hash {recipe_hash(config)}): {name}, {weights / 1e6:.1f} M parameters, on {gpus} x {device}"


def _peaks(config: Config, lines: list[StageCost], device: str) -> str:
    kinds = {config.warmup.precision if line.name == "warmup" else config.train.precision for line in lines}
    return " and ".join(f"{_peak(device, kind) / 1e12:g} TFLOP/s ({kind})" for kind in sorted(kinds))


def _peak(device: str, precision: str) -> float:
    return PEAK_CPU.get(device) or (PEAK_FLOPS if precision == "bf16" else PEAK_FP32)[device]


def _origin(device: str) -> str:
    return "measured on a core of an AMD Zen 4" if device in PEAK_CPU else "the data sheet's peak"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 3600 else f"{seconds / 3600:.2f} h"


@contextlib.contextmanager
def _fake(model: nn.Module) -> Iterator[None]:
    """A context whose new tensors have a shape and no numbers; so have those of `model` from here on."""
    with _FAKE:
        if next(model.parameters()).is_meta:
            model.to_empty(device="cpu")
        yield


def _flops(stage: Stage[Any]) -> float:
    """FLOPs of matrix products in the forward pass of a sample."""
    batch, samples = stage.example()
    with _fake(stage.model):
        return forward_flops(lambda: stage.losses(stage.model, batch, 0)) / samples


def _memory(stage: Stage[Any], config: Config, gpus: int, on_gpu: bool) -> tuple[float, str]:
    """Memory that a device must hold: (GiB, the same in words)."""
    (one, samples), (two, _) = _kept(stage, 1, on_gpu), _kept(stage, 2, on_gpu)
    batch = device_batch_size(stage.optim.global_batch, gpus, config.run.device_batch)
    per_weight = 8 + state_bytes(stage.optim) + (4 if stage.optim.ema else 0)  # fp32 weights, gradients; average
    state = per_weight * sum(p.numel() for p in stage.model.parameters()) + 2 * one - two  # and autocast's copies
    each = (two - one) / samples
    gib = (state + batch * each) / 2**30
    return gib, (
        f"about {gib:.0f} GiB a device: {state / 2**30:.1f} for weights, gradients, optimiser, and "
        f"{each / 2**20:.0f} MiB of activations for each of {batch} samples (eager; compiled keeps less). "
        "Too much? Lower run.device_batch: the global batch stays"
    )


def _kept(stage: Stage[Any], times: int, on_gpu: bool) -> tuple[int, int]:
    """Activations: (bytes that autograd keeps for the backward pass, the model's own tensors left out; samples)."""
    example, samples = stage.example()
    batch = example.map(lambda t: torch.cat([t] * times))
    own: set[int] = set()
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage()._cdata not in own:
            kept[t.untyped_storage()._cdata] = t  # held, so that no address is used twice
        return t

    with (
        _fake(stage.model),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=stage.optim.precision == "bf16"),
    ):
        own.update(t.untyped_storage()._cdata for t in (*stage.model.parameters(), *stage.model.buffers()))
        stage.model.train()
        for module in stage.model.modules():
            if on_gpu and getattr(module, "fused_attn", False):  # it keeps no probabilities, but on a CPU to drop some
                drop: Any = module.attn_drop
                drop.p = 0.0
        stage.losses(stage.model, batch, 0)
    return sum(t.untyped_storage().nbytes() for t in kept.values()), times * samples


def _storage(config: Config, weights: int) -> dict[str, str]:
    one = weights * (4 + state_bytes(config.train) + (4 if config.train.ema else 0))
    kept = config.run.keep_last + len(config.run.keep_at) + 1  # the best one; one more while it is being written
    return {
        "checkpoints": f"{one / 1e9:.2f} GB each, at most {kept + 1} at a time: {(kept + 1) * one / 1e9:.2f} GB; "
        f"the export {4 * weights / 1e9:.2f} GB"
    }
