"""Speed of a training step: the loop on images and on a warm-up, against a bare PyTorch loop over the same timm model.

    python tools/benchmark.py train model=vit_base_patch16_224 batch=256 [steps=20] [rounds=7] [precision=bf16]
        [compile=true] [size=N] [--json FILE]

The arms alternate in one process, and ratios are medians over the rounds. Data loading is left out: for our stages
batches are ready on the host (uint8 images, symbols, which still have to reach the device and be normalised), for the
bare loop on the device. What a warm-up's batch takes to write is timed on its own, on one CPU core: in training a
background thread does it ahead of the loop. Utilisation is measured against the device's own rate on one large matrix
product; a profile of the image arm says, after the rounds, where its time goes, kernel by kernel.
"""

import gc
import io
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Protocol

import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from bench.profile import profile
from vitwarm.budget.page import Block, to_markdown
from vitwarm.budget.speed import vit_speed
from vitwarm.config import Config, RunConfig
from vitwarm.errors import UserError
from vitwarm.files import write_text
from vitwarm.keys import keyed_rng
from vitwarm.procedural import RuleStream, make_rule
from vitwarm.procedural.stream import CHUNK
from vitwarm.stages.batches import ImageBatch, MaskedBatch
from vitwarm.stages.images import ImagesStage
from vitwarm.stages.registry import Setup
from vitwarm.stages.warmup import WarmupStage
from vitwarm.training.checkpoint import Checkpoints
from vitwarm.training.loop import Context, Training
from vitwarm.training.processes import Processes, start_accelerator
from vitwarm.training.protocol import Stage
from vitwarm.training.tracking import Tracker
from vitwarm.trunk import build_model, family_of

DEFAULTS = {"model": "vit_base_patch16_224", "batch": 256, "steps": 20, "rounds": 7, "size": 0, "classes": 1000}
DEFAULTS |= {"precision": "bf16", "compile": "true"}
CHOICES = {"precision": ("bf16", "fp32"), "compile": ("true", "false")}
FOREVER = 10**9


class ReadyImages(ImagesStage):
    """The image stage with one batch of noise, ready on the host, again and again."""

    def batches(self, start: int, rank: int, world: int, device_batch: int) -> Generator[ImageBatch, None, None]:
        rng = keyed_rng(self.seed, "benchmark")
        shape = (device_batch, 3, self.size, self.size)
        images = torch.from_numpy(rng.integers(0, 256, shape, dtype="uint8"))
        labels = torch.from_numpy(rng.integers(0, self.num_classes, device_batch))
        valid, weight = torch.ones(device_batch, dtype=torch.bool), float(device_batch)
        batch = ImageBatch(labels=labels, valid=valid, sample=labels, offset=0, images=images, weight=weight)
        if torch.cuda.is_available():
            batch = batch.map(torch.Tensor.pin_memory)
        while True:
            yield batch


class ReadySymbols(WarmupStage):
    """The warm-up with its first batch, again and again."""

    def batches(self, start: int, rank: int, world: int, device_batch: int) -> Generator[MaskedBatch, None, None]:
        batch = next(super().batches(start, rank, world, device_batch))
        while True:
            yield batch


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one large matrix product on the device, the best of several."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    return max(2 * n**3 / timed(lambda: torch.mm(a, b), device) for _ in range(10))


def timed(action: Callable[[], Any], device: torch.device) -> float:
    """Seconds until the device is done; of one CPU thread those that it worked: other processes do not count."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = clock()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


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


class Arm(Protocol):
    """What is timed."""

    def step(self) -> None:
        """One step of training."""
        ...


class Ours:
    """Steps of our loop on a stage."""

    def __init__(self, stage: Stage, context: Context):
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
        self.images = torch.randn(config.train.global_batch, 3, *family_of(self.model).input_size, device=device)
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
        `ratios`: what matters between arms; `profile`: kernel -> share of the time of the images; `symbols_ms`: see
        above; and what it was measured on.
    """
    accelerator = start_accelerator()
    device = accelerator.device
    with tempfile.TemporaryDirectory() as folder:
        config = recipe(options, _one_image(Path(folder)))
        builders = {
            "bare": lambda: Bare(config, device),
            "images": lambda: Ours(_images(config), benchmark_context(accelerator, Path(folder), config.run)),
            "warmup": lambda: Ours(
                ReadySymbols(config, None), benchmark_context(accelerator, Path(folder), config.run)
            ),
        }
        arms, rounds, memory = alternate(builders, options["steps"], options["rounds"], device)
    dtype = torch.bfloat16 if options["precision"] == "bf16" else torch.float32
    written = symbols_ms(config, arms["warmup"].training.stage.length, rounds=50)
    shares = profile(arms["images"].step, device)
    return report(options, rounds, arms, memory, matmul_rate(device, dtype), written, device) | {"profile": shares}


def benchmark_context(accelerator: Accelerator, folder: Path, run: RunConfig) -> Context:
    """What a stage's loop needs, with nothing written down but the log's lines."""
    return Context(
        accelerator=accelerator,
        processes=Processes(0, 1, accelerator.device),
        run=run,
        seed=0,
        recipe_hash="",
        tracker=Tracker(folder, active=False),
        checkpoints=Checkpoints(folder / "checkpoints", 1),
        stop=[],
    )


def alternate(
    builders: dict[str, Callable[[], Arm]], steps: int, rounds: int, device: torch.device
) -> tuple[dict[str, Arm], list[dict[str, float]], dict[str, int]]:
    """Build the arms and time them in turns, every other round in reverse order.

    Args:
        builders: name -> what makes the arm.
        steps: of an arm in one round.
        rounds: how often each has its turn.
        device: where they run.

    Returns:
        The arms; for each round the seconds of a step by arm; most bytes that an arm held, on CUDA, else 0.
    """
    arms: dict[str, Arm] = {}
    held: dict[str, int] = {}
    for name, build in builders.items():
        before = _allocated(device)
        arms[name] = build()
        _steps(arms[name], 3)  # compiles, and brings the optimiser's state to life
        held[name] = _allocated(device) - before
    memory, found = dict.fromkeys(arms, 0), []
    for number in range(rounds):
        times = {}
        for name in list(arms) if number % 2 == 0 else list(arms)[::-1]:
            gc.collect()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            others = _allocated(device) - held[name]
            times[name] = timed(lambda arm=arms[name]: _steps(arm, steps), device) / steps
            if device.type == "cuda":
                memory[name] = max(memory[name], torch.cuda.max_memory_allocated(device) - others)
        found.append(times)
    return arms, found, memory


def _images(config: Config) -> ReadyImages:
    stage = ReadyImages(config, Setup())
    stage.bind(stage.fresh_model())
    return stage


def _steps(arm: Arm, count: int) -> None:
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
        times = [times[name] for times in rounds]
        result["arms"][name] = figures(times, options["batch"], of, rate, memory[name] or None)
    share = arms["warmup"].tokens / arms["images"].tokens
    result["ratios"] = {
        "images_speed_over_bare": statistics.median(t["bare"] / t["images"] for t in rounds),
        "warmup_token_speed_over_images": statistics.median(share * t["images"] / t["warmup"] for t in rounds),
    }
    result["symbols_ms"] = written
    return result | measured_on(device, rate)


def figures(times: list[float], batch: int, ours: Ours, rate: float, memory: int | None) -> dict[str, float | None]:
    """An arm's line of the table.

    Args:
        times: seconds of a step in each round.
        batch: samples a step.
        ours: the arm that says what FLOPs and tokens a sample costs; those of a rival on the same work are equal.
        rate: FLOP/s that count as full utilisation.
        memory: bytes, None where they were not measured.
    """
    seconds = statistics.median(times)
    achieved = batch * ours.flops / seconds
    return {
        "step_ms": 1e3 * seconds,
        "samples_per_s": batch / seconds,
        "tokens_per_s": batch * ours.tokens / seconds,
        "tflops": achieved / 1e12,
        "mfu_pct": 100 * achieved / rate,
        "memory_gib": None if memory is None else memory / 2**30,
    }


def measured_on(device: torch.device, rate: float) -> dict[str, Any]:
    """What a result was measured on."""
    return {
        "matmul_tflops": rate / 1e12,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
    }


def read_options(
    arguments: list[str],
    defaults: dict[str, Any] = DEFAULTS,
    choices: dict[str, tuple[str, ...]] = CHOICES,
    files: tuple[str, ...] = ("json",),
) -> tuple[dict[str, Any], dict[str, Path]]:
    """`key=value` options over the defaults, and paths such as that of `--json FILE`.

    Args:
        arguments: of the command line.
        defaults: known keys; where a default is a whole number, so is the option: at least 1, or 0 if the default is.
        choices: what some options may be; `true` and `false` become booleans.
        files: names of the `--NAME PATH` options.

    Raises:
        UserError: an unknown or impossible option.
    """
    arguments, paths = list(arguments), {}
    for name in files:
        if f"--{name}" in arguments:
            at = arguments.index(f"--{name}")
            if at + 1 == len(arguments):
                raise UserError(f"--{name} needs a path")
            paths[name] = Path(arguments[at + 1])
            del arguments[at : at + 2]
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if unknown := given.keys() - defaults.keys():
        known = " ".join(f"{key}={value}" for key, value in defaults.items())
        raise UserError(f"unknown {', '.join(sorted(unknown))}; options and their defaults: {known}")
    options: dict[str, Any] = defaults | given
    for key, default in defaults.items():
        if isinstance(default, int):
            least = min(default, 1)
            if not str(options[key]).isdigit() or int(options[key]) < least:
                raise UserError(f"{key} is a whole number of at least {least}, not {options[key]!r}")
            options[key] = int(options[key])
    for key, known in choices.items():
        if options[key] not in known:
            raise UserError(f"{key} is one of {', '.join(known)}, not {options[key]!r}")
    return options | {k: options[k] == "true" for k, known in choices.items() if known == ("true", "false")}, paths


def command(
    arguments: list[str],
    page: str,
    measure: Callable[[list[str]], tuple[dict[str, Any], Path | None]],
    show: Callable[[dict[str, Any]], list[Block]],
) -> int:
    """Help, or a measurement that is shown and, where a file is given, written as JSON; the exit code."""
    if {"-h", "--help"} & set(arguments):
        print(page.strip())
        return 0
    try:
        result, file = measure(arguments)
    except UserError as error:
        print(f"vitwarm: error: {error}", file=sys.stderr)
        return 2
    print(to_markdown("Speed of a training step", show(result)))
    if file:
        write_text(file, json.dumps(result, indent=1) + "\n")
    return 0


def main(arguments: list[str]) -> int:
    """The command."""

    def measured(arguments: list[str]) -> tuple[dict[str, Any], Path | None]:
        options, paths = read_options(arguments)
        return measure(options), paths.get("json")

    return command(arguments, __doc__, measured, vit_speed)
