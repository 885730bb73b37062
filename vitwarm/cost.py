"""What a recipe will cost, before it runs: samples, tokens, FLOPs, hours, storage, memory. Needs neither GPU nor data.

FLOPs and activations come from the real model on fake tensors, which have shapes and no numbers. Hours rest on an
assumption, the model FLOP utilisation (MFU), that stands beside them.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vitwarm.checks import starts_from_given, warms_up
from vitwarm.config import Config, OptimConfig
from vitwarm.data.subset import is_list, read_names, subset_size
from vitwarm.errors import UserError
from vitwarm.recipe import recipe_hash
from vitwarm.stages import AlgorithmicStage, TokenStage, make_text, make_warmup
from vitwarm.stages.images import default_workers, image_lengths, open_shards
from vitwarm.training.loop import device_batch_size
from vitwarm.training.meters import PEAK_FLOPS, forward_flops
from vitwarm.trunk import Decoder, ImageModel, build_model, configured_decoder, family_of

IMAGENET = {"train": 1_281_167, "val": 50_000}
IMAGENET_BYTES = {"train": 147_897_477_120, "val": 6_744_924_160}  # ILSVRC2012's archives; shards keep their JPEGs

_FAKE = FakeTensorMode(allow_non_fake_inputs=True)  # one for all: fake tensors of two modes do not mix

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
    "H200": 66.9e12,
    "B200": 75e12,
    "RTX 4090": 82.6e12,
    "RTX 3090": 35.6e12,
}


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
        head = f"{'stage':<12}{'steps':>10}{'samples':>15}{'tokens':>18}{'FLOPs':>11}{'hours':>10}"
        rows = [
            f"{c.name:<12}{c.steps or '':>10}{c.samples:>15,}{c.tokens:>18,}{c.flops:>11.3g}{c.seconds / 3600:>10.2f}"
            for c in self.lines
        ]
        width = max(map(len, self.facts))
        return "\n".join(
            [self.title, "", head, *rows, f"{'all':<12}{'':>54}{self.seconds / 3600:>10.2f}", ""]
            + [f"{label:<{width}}  {text}" for label, text in self.facts.items()]
        )


def estimate(config: Config, gpus: int, device: str, mfu: float = 0.4, train_images: int | None = None) -> Estimate:
    """Samples, tokens, FLOPs, hours, storage and memory of a recipe.

    Args:
        config: the recipe.
        gpus: devices, one process each.
        device: a name of `PEAK_FLOPS`, in any case.
        mfu: assumed share of the device's peak that the model's FLOPs reach.
        train_images: size of the training set; None counts the shards, or takes ImageNet-1k's when they are not here.

    Raises:
        UserError: unknown device, impossible numbers, or an unknown number of images.
    """
    name = next((known for known in PEAK_FLOPS if known.lower() == device.lower().replace("_", " ")), None)
    if name is None:
        known = ", ".join(k.lower().replace(" ", "_") for k in PEAK_FLOPS)
        raise UserError(f"device={device} is not known; known: {known}")
    if train_images is not None and train_images < 1:
        raise UserError(f"train_images is at least 1, not {train_images}")
    if gpus < 1 or not 0 < mfu <= 1:
        raise UserError(f"gpus is at least 1 and mfu lies in (0, 1], not gpus={gpus} mfu={mfu:g}")

    def seconds(flops: float, optim: OptimConfig) -> float:
        peak = (PEAK_FLOPS if optim.precision == "bf16" else PEAK_FP32)[name]
        recomputed = 4 / 3 if config.model.grad_checkpointing else 1  # the blocks' forward pass once more
        return flops * recomputed / (gpus * mfu * peak)

    lines, facts, samples = [], {}, None
    main = None
    with torch.device("meta"):
        if not config.model.decoder.size:
            model = vit = build_model(config.model, "images", seed=config.seed)
        elif config.algorithmic.task:
            model, main = _algorithmic(config)
        elif not config.text.train:
            model = make_warmup(config, None).model
    images = bool(config.images.train) and config.images.epochs > 0
    if config.text.train and config.model.decoder.size:
        model, main = _text(config)
    weights = sum(p.numel() for p in model.parameters())
    if images:
        full, val, facts["images"] = _count_images(config, train_images or config.images.train_samples)
        steps, eval_every, _ = image_lengths(config, full, used := _used(config, full))
        if used < full:
            facts["subset"] = f"{used:,} of them (images.subset={config.images.subset})"
        samples = steps * config.train.global_batch
        tokens, flops, memory = _image_costs(config, vit, gpus)
        work = 3 * flops * samples
        lines.append(StageCost("images", steps, samples, tokens * samples, work, seconds(work, config.train)))
        shown = val * math.ceil(steps / eval_every)
        lines.append(
            StageCost("evaluation", 0, shown, tokens * shown, flops * shown, seconds(flops * shown, config.train))
        )
        rate = samples / lines[0].seconds
        facts["data rate"] = f"{rate:,.0f} images/s decoded and augmented, {rate / gpus:,.0f} for each GPU"
    if main is not None:
        lines, samples = _token_lines(main, seconds), main.samples
    if not starts_from_given(config) and warms_up(config):
        with torch.device("meta"):
            warmup = make_warmup(config, samples)
        lines.insert(0, _token_lines(warmup, seconds)[0])
    if not lines:
        raise UserError("nothing to estimate: no images, algorithmic task or warm-up (warmup.budget)")
    facts |= _storage(config, weights)
    if images:
        facts["memory"] = memory
    facts["assumed"] = f"MFU {mfu:g} of {_peaks(config, lines, name)}, the data sheet's peak; no waiting for data"
    found = Estimate(_title(config, gpus, name, weights), lines, facts)
    if found.share("samples") is not None:
        parts = ", ".join(f"{100 * found.share(what):.2f} % of its {label}" for what, label in _SHARES.items())
        facts["the warm-up"] = f"on top of the main stage: {parts}"
    return found


def _algorithmic(config: Config) -> tuple[Decoder, AlgorithmicStage]:
    stage = AlgorithmicStage(config)
    positions = config.model.decoder.positions or stage.positions
    model = configured_decoder(config.model, stage.vocab_size, positions, seed=config.seed)
    stage.set_model(model, False)
    return model, stage


def _text(config: Config) -> tuple[nn.Module, TokenStage]:
    """The stage counts its tokens, so the data must be here; they are cached for the run."""
    stage = make_text(config, default_workers(1) if config.run.workers is None else config.run.workers)
    positions = config.model.decoder.positions or stage.positions
    more = getattr(stage, "decoder_args", {})
    with torch.device("meta"):
        model = configured_decoder(config.model, stage.vocab_size, positions, seed=config.seed, **more)
    stage.set_model(model, False)
    return model, stage


def _token_lines(stage: TokenStage, seconds: Callable[[float, OptimConfig], float]) -> list[StageCost]:
    """A stage over rows of tokens, and its evaluations."""
    batch, rows = stage.example()
    flops = _flops(lambda: stage.losses(stage.model, batch, 0), stage.model) / rows
    shown = stage.val_rows * math.ceil(stage.steps / stage.eval_every)
    return [
        StageCost(name, steps, count, count * stage.tokens_per_sample, work, seconds(work, stage.optim))
        for name, steps, count, work in (
            (stage.name, stage.steps, stage.samples, 3 * flops * stage.samples),
            ("evaluation", 0, shown, flops * shown),
        )
    ]


_SHARES = {"samples": "samples", "flops": "FLOPs", "seconds": "hours"}


def _title(config: Config, gpus: int, device: str, weights: int) -> str:
    name = config.model.decoder.size or config.model.name
    return f"{config.name} (hash {recipe_hash(config)}): {name}, {weights / 1e6:.1f} M parameters, on {gpus} x {device}"


def _peaks(config: Config, lines: list[StageCost], device: str) -> str:
    kinds = {config.warmup.precision if line.name == "warmup" else config.train.precision for line in lines}
    peaks = {"bf16": PEAK_FLOPS[device], "fp32": PEAK_FP32[device]}
    return " and ".join(f"{peaks[kind] / 1e12:g} TFLOP/s ({kind})" for kind in sorted(kinds))


def _count_images(config: Config, given: int | None) -> tuple[int, int, str]:
    """(training images, validation images, where the numbers are from)."""
    counts, sources = {}, []
    for split, spec in (("train", config.images.train), ("val", config.images.val)):
        imagenet = config.model.num_classes == 1000
        if split == "train" and given:
            counts[split], source = given, "as told"
        elif not spec:
            counts[split], source = 0, "none"
        else:
            try:
                shards = open_shards(spec, "train" if split == "train" else "test", f"images.{split}")
                size = sum(path.stat().st_size for path in shards.paths) / 1e9
                counts[split], source = len(shards), f"in {len(shards.paths)} shards of {size:.1f} GB"
            except UserError as error:
                if split == "train" and not imagenet:
                    raise UserError(f"{error}; or say train_images=N") from error
                counts[split] = IMAGENET[split] if imagenet else 0
                size = IMAGENET_BYTES[split] / 1e9
                source = f"ImageNet-1k, {size:.1f} GB; its shards are not here" if imagenet else "not here: not counted"
        sources.append(f"{counts[split]:,} {split} ({source})")
    return counts["train"], counts["val"], ", ".join(sources)


def _used(config: Config, full: int) -> int:
    spec = config.images.subset
    if not spec:
        return full
    return len(read_names(Path(spec).expanduser())) if is_list(spec) else subset_size(spec, full)


@contextlib.contextmanager
def _fake(model: nn.Module) -> Iterator[None]:
    """Tensors made inside have a shape and no numbers, and so have those of `model` from here on."""
    with _FAKE:
        if next(model.parameters()).is_meta:
            model.to_empty(device="cpu")
        yield


def _flops(forward: Callable[[], object], model: nn.Module) -> float:
    """FLOPs of matrix products in `forward`, which runs `model`."""
    with _fake(model):
        return forward_flops(forward)


def _image_costs(config: Config, vit: nn.Module, gpus: int) -> tuple[int, float, str]:
    """(tokens, forward FLOPs) of an image, and what a device must hold."""
    model = ImageModel(vit, config.model.grad_checkpointing)
    size = config.images.size or family_of(vit).image_size
    flops = _flops(lambda: model(torch.zeros(1, 3, size, size)), model)
    bf16 = config.train.precision == "bf16"
    one, two = (_kept(model, torch.Size((n, 3, size, size)), bf16) for n in (1, 2))
    batch = device_batch_size(config.train.global_batch, gpus, config.run.device_batch)
    per_weight = 16 + (4 if config.train.ema else 0)  # fp32 weights, gradients, two moments, average
    state = per_weight * sum(p.numel() for p in vit.parameters()) + 2 * one - two  # and autocast's copies
    each = two - one
    text = (
        f"about {(state + batch * each) / 2**30:.0f} GiB a GPU: {state / 2**30:.1f} for weights, gradients, optimiser, "
        f"and {each / 2**20:.0f} MiB of activations for each of {batch} images (eager; compiled keeps less). "
        "Too much? Lower run.device_batch: the global batch stays"
    )
    return family_of(vit).tokens(size), flops, text


def _kept(model: nn.Module, shape: torch.Size, bf16: bool) -> int:
    """Bytes that autograd keeps for the backward pass, the model's own tensors left out."""
    own: set[int] = set()
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage()._cdata not in own:
            kept[t.untyped_storage()._cdata] = t  # held, so that no address is used twice
        return t

    with (
        _fake(model),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16),
    ):
        own.update(t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers()))
        model.train()(torch.zeros(shape))
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def _storage(config: Config, weights: int) -> dict[str, str]:
    one = weights * (12 + (4 if config.train.ema else 0))
    kept = config.run.keep_last + 1  # the best one; one more while it is being written
    return {
        "checkpoints": f"{one / 1e9:.2f} GB each, at most {kept + 1} at a time: {(kept + 1) * one / 1e9:.2f} GB; "
        f"the export {4 * weights / 1e9:.2f} GB"
    }
