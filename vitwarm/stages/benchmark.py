"""Speed of a training step: the loop on images and on a warm-up, against a bare PyTorch loop over the same timm model.

    python tools/benchmark.py train model=vit_base_patch16_224 batch=256 [steps=20] [rounds=7] [precision=bf16]
        [compile=true] [size=N] [--json FILE]

The arms alternate in one process, and ratios are medians over the rounds. Data loading is left out: for our stages
batches are ready on the host (uint8 images, symbols, which still have to reach the device and be normalised), for the
bare loop on the device. What a warm-up's batch takes to write is timed on its own, on one CPU core: in training a
background thread does it ahead of the loop. Utilisation is measured against the device's own rate on one large matrix
product.
"""

import gc
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.procedural import RuleStream, make_rule
from vitwarm.procedural.keys import keyed_rng
from vitwarm.procedural.stream import CHUNK
from vitwarm.stages.images import ImagesStage
from vitwarm.stages.warmup import WarmupStage
from vitwarm.training.checkpoint import Checkpoints
from vitwarm.training.loop import Context, Training
from vitwarm.training.processes import Processes, start_accelerator
from vitwarm.training.protocol import Batch
from vitwarm.training.tracking import Tracker
from vitwarm.trunk import build_model

DEFAULTS = {"model": "vit_base_patch16_224", "batch": 256, "steps": 20, "rounds": 7, "size": 0, "classes": 1000}
DEFAULTS |= {"precision": "bf16", "compile": "true"}
FOREVER = 10**9


class ReadyImages(ImagesStage):
    """The image stage with one batch of noise, ready on the host, again and again."""

    def batches(self, start: int, rank: int, world: int, device_batch: int) -> Generator[Batch, None, None]:
        rng = keyed_rng(self.seed, "benchmark")
        shape = (device_batch, 3, self.size, self.size)
        images = torch.from_numpy(rng.integers(0, 256, shape, dtype="uint8"))
        labels = torch.from_numpy(rng.integers(0, self.num_classes, device_batch))
        batch = {"image": images, "label": labels, "valid": torch.ones(device_batch, dtype=torch.bool)}
        if torch.cuda.is_available():
            batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
        while True:
            yield batch | {"position": 0, "weight": float(device_batch)}


class ReadySymbols(WarmupStage):
    """The warm-up with its first batch, again and again."""

    def batches(self, start: int, rank: int, world: int, device_batch: int) -> Generator[Batch, None, None]:
        batch = next(super().batches(start, rank, world, device_batch))
        while True:
            yield batch


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one large matrix product on the device, the best of several."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    return max(2 * n**3 / _timed(lambda: torch.mm(a, b), device) for _ in range(10))


def _timed(action: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def recipe(options: dict[str, Any], tar: Path) -> Config:
    """A recipe with nothing but the step: no augmentation, no evaluation, no checkpoints, logs as usual."""
    config = Config(name="benchmark")
    config.model.name, config.model.num_classes = options["model"], options["classes"]
    if options["size"]:
        config.model.args["img_size"] = options["size"]
    config.images.train, config.images.epochs, config.images.label_smoothing = str(tar), FOREVER, 0.0
    config.warmup.rule, config.warmup.budget = {"name": "dyck", "k": 64, "p_open": 0.6}, f"{FOREVER} steps"
    config.warmup.eval_every = config.images.eval_every = FOREVER  # the one image makes an epoch a step
    for stage in (config.warmup, config.train):
        stage.global_batch, stage.precision, stage.compile = options["batch"], options["precision"], options["compile"]
        stage.lr, stage.lr_warmup = 1e-4, "0"
    config.run.checkpoint_every = FOREVER
    return config


def _one_image(folder: Path) -> Path:
    import webdataset
    from PIL import Image

    png = io.BytesIO()
    Image.new("RGB", (2, 2)).save(png, format="PNG")
    with open(folder / "one.tar", "wb") as stream, webdataset.TarWriter(stream) as tar:
        tar.write({"__key__": "one", "png": png.getvalue(), "cls": "0"})
    return folder / "one.tar"


def symbols_ms(config: Config, length: int, rounds: int) -> float:
    """Milliseconds of one core that a batch of the warm-up takes to write: inputs, targets and mask.

    Rows are written in chunks, so it is the share of a chunk; the median of the rounds.
    """
    stream, times = RuleStream(make_rule(**config.warmup.rule), 0, "train", length), []
    for number in range(rounds + 1):  # the first does not count
        started = time.thread_time()
        stream.masked_rows(number * CHUNK, (number + 1) * CHUNK, config.warmup.mask_prob)
        times.append(1e3 * (time.thread_time() - started))
    return statistics.median(times[1:]) * config.warmup.global_batch / CHUNK


class Ours:
    """Steps of our loop on a stage."""

    def __init__(self, stage: ReadyImages | ReadySymbols, context: Context):
        self.training = Training(stage, context, None)
        self.batches = stage.batches(0, 0, 1, stage.optim.global_batch)
        self.flops = self.training.flops_per_sample
        self.tokens = stage.tokens_per_sample

    def step(self) -> None:
        self.training.step(self.batches)


class Bare:
    """What anyone would write: timm's forward, cross-entropy, fused AdamW; blocks compiled, batch on the device."""

    def __init__(self, config: Config, device: torch.device):
        self.model: nn.Module = build_model(config.model, "images", seed=0).to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
        if config.train.compile:
            for block in self.model.blocks:
                block.compile()
        side = self.model.patch_embed.img_size[0]
        self.images = torch.randn(config.train.global_batch, 3, side, side, device=device)
        self.labels = torch.randint(config.model.num_classes, (config.train.global_batch,), device=device)
        self.bf16, self.device = config.train.precision == "bf16", device

    def step(self) -> None:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            loss = F.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """Alternate the arms and report each.

    Args:
        options: keys of `DEFAULTS`.

    Returns:
        `arms`: name -> step_ms, samples_per_s, tokens_per_s, tflops, mfu_pct, memory_gib (CUDA only);
        `ratios`: what matters between arms; `symbols_ms`: see above; and what it was measured on.
    """
    accelerator = start_accelerator()
    device, rounds = accelerator.device, []
    with tempfile.TemporaryDirectory() as folder:
        config = recipe(options, _one_image(Path(folder)))

        def context() -> Context:
            return Context(
                accelerator=accelerator,
                processes=Processes(0, 1, device),
                folder=Path(folder),
                run=config.run,
                seed=0,
                recipe_hash="",
                tracker=Tracker(Path(folder), active=False),
                checkpoints=Checkpoints(Path(folder) / "checkpoints", 1),
                stop=[],
            )

        arms: dict[str, Ours | Bare] = {}
        held: dict[str, int] = {}
        for name, build in (
            ("bare", lambda: Bare(config, device)),
            ("images", lambda: Ours(_images(config), context())),
            ("warmup", lambda: Ours(ReadySymbols(config, None), context())),
        ):
            before = _allocated(device)
            arms[name] = build()
            for _ in range(3):  # compiles, and brings the optimiser's state to life
                arms[name].step()
            held[name] = _allocated(device) - before
        memory = dict.fromkeys(arms, 0)
        for number in range(options["rounds"]):
            times = {}
            order = list(arms) if number % 2 == 0 else list(arms)[::-1]
            for name in order:
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                others = _allocated(device) - held[name]
                times[name] = _timed(lambda arm=arms[name]: _steps(arm, options["steps"]), device) / options["steps"]
                if device.type == "cuda":
                    memory[name] = max(memory[name], torch.cuda.max_memory_allocated(device) - others)
            rounds.append(times)
    dtype = torch.bfloat16 if options["precision"] == "bf16" else torch.float32
    written = symbols_ms(config, arms["warmup"].training.stage.length, rounds=50)
    return report(options, rounds, arms, memory, matmul_rate(device, dtype), written, device)


def _images(config: Config) -> ReadyImages:
    stage = ReadyImages(config, workers=0)
    stage.set_model(build_model(config.model, "images", seed=0), False)
    return stage


def _steps(arm: Ours | Bare, count: int) -> None:
    for _ in range(count):
        arm.step()


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def report(
    options: dict[str, Any],
    rounds: list[dict[str, float]],
    arms: dict[str, "Ours | Bare"],
    memory: dict[str, int],
    rate: float,
    written: float,
    device: torch.device,
) -> dict[str, Any]:
    """Medians of the rounds, and medians of the ratios within a round; the bare arm does the images' FLOPs."""
    result: dict[str, Any] = {"options": options, "arms": {}}
    for name in arms:
        of = arms["images" if name == "bare" else name]
        seconds = statistics.median(times[name] for times in rounds)
        achieved = options["batch"] * of.flops / seconds
        result["arms"][name] = {
            "step_ms": 1e3 * seconds,
            "samples_per_s": options["batch"] / seconds,
            "tokens_per_s": options["batch"] * of.tokens / seconds,
            "tflops": achieved / 1e12,
            "mfu_pct": 100 * achieved / rate,
            "memory_gib": memory[name] / 2**30 if device.type == "cuda" else None,
        }
    share = arms["warmup"].tokens / arms["images"].tokens
    result["ratios"] = {
        "images_speed_over_bare": statistics.median(t["bare"] / t["images"] for t in rounds),
        "warmup_token_speed_over_images": statistics.median(share * t["images"] / t["warmup"] for t in rounds),
    }
    result["symbols_ms"] = written
    result["matmul_tflops"] = rate / 1e12
    result["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    result["threads"] = torch.get_num_threads()
    result["versions"] = {"torch": torch.__version__, "timm": timm.__version__}
    return result


def markdown(result: dict[str, Any]) -> str:
    """A table of the arms, and the ratios."""
    options = result["options"]
    lines = [
        f"{options['model']}, batch {options['batch']}, {options['precision']}, compile={options['compile']}, "
        f"{options['rounds']} rounds of {options['steps']} steps on {result['device']}; "
        f"one large matrix product: {result['matmul_tflops']:.3g} TFLOP/s",
        "",
        "| arm | step, ms | samples/s | tokens/s | TFLOP/s | MFU, % of the product | memory, GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, arm in result["arms"].items():
        memory = "" if arm["memory_gib"] is None else f"{arm['memory_gib']:.2f}"
        lines.append(
            f"| {name} | {arm['step_ms']:.1f} | {arm['samples_per_s']:,.0f} | {arm['tokens_per_s']:,.0f} | "
            f"{arm['tflops']:.3g} | {arm['mfu_pct']:.1f} | {memory} |"
        )
    ratios = result["ratios"]
    return "\n".join(
        [
            *lines,
            "",
            f"images at {ratios['images_speed_over_bare']:.3f} of the bare loop's speed; "
            f"a token of the warm-up at {ratios['warmup_token_speed_over_images']:.3f} of one of the images",
            f"a batch of symbols takes a core {result['symbols_ms']:.2f} ms to write, "
            f"{100 * result['symbols_ms'] / result['arms']['warmup']['step_ms']:.3g} % of a warm-up step",
        ]
    )


def read_options(arguments: list[str]) -> tuple[dict[str, Any], Path | None]:
    """`key=value` options over the defaults, and the file of `--json`.

    Raises:
        UserError: an unknown or impossible option.
    """
    arguments, file = list(arguments), None
    if "--json" in arguments:
        at = arguments.index("--json")
        if at + 1 == len(arguments):
            raise UserError("--json needs a file")
        file = Path(arguments[at + 1])
        del arguments[at : at + 2]
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if unknown := given.keys() - DEFAULTS.keys():
        known = " ".join(f"{key}={value}" for key, value in DEFAULTS.items())
        raise UserError(f"unknown {', '.join(sorted(unknown))}; options and their defaults: {known}")
    options: dict[str, Any] = DEFAULTS | given
    for key, default in DEFAULTS.items():
        if isinstance(default, int):
            if not str(options[key]).isdigit() or (int(options[key]) < 1 and key != "size"):
                raise UserError(f"{key} is a whole number of at least 1, not {options[key]!r}")
            options[key] = int(options[key])
    for key, known in (("precision", ("bf16", "fp32")), ("compile", ("true", "false"))):
        if options[key] not in known:
            raise UserError(f"{key} is one of {', '.join(known)}, not {options[key]!r}")
    return options | {"compile": options["compile"] == "true"}, file


def main(arguments: list[str]) -> int:
    """The command."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__.strip())
        return 0
    try:
        options, file = read_options(arguments)
        result = measure(options)
    except UserError as error:
        print(f"vitwarm: error: {error}", file=sys.stderr)
        return 2
    print(markdown(result))
    if file:
        aside = file.with_name(f".{file.name}.tmp")
        aside.write_text(json.dumps(result, indent=1) + "\n")
        os.replace(aside, file)
    return 0
