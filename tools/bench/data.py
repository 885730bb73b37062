"""Images a second on one core, beside timm's and torchvision's ways.

    python tools/benchmark.py data shards=SHARDS [folder=CLASS_FOLDERS] [size=224] [batch=50] [rounds=9] [--json FILE]

Everyone does random-resized-crop, bicubic, and a flip, and hands over uint8 pixels: normalisation belongs to the
device. Transforms start from encoded images in memory, loaders from the disk (one process, no workers). Arms alternate
round by round in one process on one thread; times are CPU seconds, figures medians over the rounds, ratios medians of
the ratio within a round. The law of the crops is compared with timm's on the same images. Without `folder` the images
of the shards are unpacked into a temporary one. Each round is a pass over all images: name a few tars of a large set.
DALI and SPDL are measured too where they are installed (tools/bench/rivals.py).
"""

import io
import json
import logging
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode, v2

from bench.machine import processor
from bench.rivals import RATIO, SCALE, rivals
from vitwarm.budget.statistics import load_scipy
from vitwarm.data import decoding
from vitwarm.data.cropping import cut, random_crop_box, resize
from vitwarm.data.decoding import Jpeg, decode
from vitwarm.data.images import TrainTransform
from vitwarm.data.loading import AT_ONCE, ImageDataset, train_loader
from vitwarm.data.order import ImageOrder
from vitwarm.data.shards import ShardSet, expand
from vitwarm.errors import UserError
from vitwarm.files import write_text
from vitwarm.keys import keyed_rng

NUMBERS = {"size": 224, "batch": 50, "rounds": 9}
CROPS = 20_000  # drawn to compare their laws
OURS = "vitwarm"


def _pil(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def transforms(size: int) -> dict[str, Callable[[list[bytes], int], Any]]:
    """Arms from encoded images, and the number of the first, to uint8 pixels."""
    ours = TrainTransform(size)
    theirs = timm.data.create_transform(
        size, is_training=True, color_jitter=0.0, interpolation="bicubic", use_prefetcher=True
    )
    crop = {"interpolation": InterpolationMode.BICUBIC, "antialias": True}
    steps = [v2.RandomResizedCrop(size, **crop), v2.RandomHorizontalFlip()]
    on_images, on_tensors = v2.Compose([*steps, v2.PILToTensor()]), v2.Compose(steps)

    def in_phases(encoded: list[bytes], first: int) -> list[torch.Tensor]:
        states: list[Any] = encoded
        rngs = [keyed_rng(0, "images", "augment", 0, first + row) for row in range(len(encoded))]
        for phase in ours.phases:
            states = [phase(state, rng) for state, rng in zip(states, rngs, strict=True)]
        return states

    arms = {
        OURS: in_phases,
        "timm": lambda encoded, first: [theirs(_pil(data)) for data in encoded],
        "torchvision, PIL": lambda encoded, first: [on_images(_pil(data)) for data in encoded],
    }
    if hasattr(torchvision.io, "decode_image"):  # deprecated in favour of torchcodec

        def decoded(data: bytes) -> torch.Tensor:
            return torchvision.io.decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode="RGB")

        arms["torchvision, tensors"] = lambda encoded, first: [on_tensors(decoded(data)) for data in encoded]
    return arms


def loaders(shards: ShardSet, folder: Path, size: int, batch: int) -> dict[str, Callable[[int], Iterable[Any]]]:
    """Arms from the number of a round to an iterable over the batches of one epoch."""
    steps = len(shards) // batch
    ours = ImageDataset(shards, TrainTransform(size))
    order = ImageOrder(len(shards), batch, seed=0)
    crop = v2.RandomResizedCrop(size, interpolation=InterpolationMode.BICUBIC, antialias=True)
    plain = torchvision.datasets.ImageFolder(folder, v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()]))
    names = "::".join(str(path.resolve()) for path in shards.paths)
    tars = {"root": "", "split": f"{names}|{len(shards)}", "is_training": True, "batch_size": batch}

    def timms(dataset: Any) -> Iterable[Any]:
        loader = timm.data.create_loader(
            dataset, (3, size, size), batch, is_training=True, color_jitter=0.0, interpolation="bicubic", num_workers=0,
            device=torch.device("cpu"), persistent_workers=False,
        )  # fmt: skip
        return loader.loader  # what its PrefetchLoader adds is done by the device

    return {
        OURS: lambda turn: train_loader(ours, order, turn * steps, (turn + 1) * steps),
        "timm, ImageFolder": lambda turn: timms(timm.data.create_dataset("", str(folder))),
        "timm, ReaderWds": lambda turn: timms(timm.data.create_dataset("wds/", **tars)),
        "torchvision, ImageFolder": lambda turn: DataLoader(plain, batch, shuffle=True, drop_last=True),
    }


def unpack(shards: ShardSet, folder: Path) -> None:
    """Every image as FOLDER/CLASS/NUMBER.jpg, whatever its format."""
    for sample in range(len(shards)):
        path = folder / f"{shards.labels[sample]:04d}" / f"{sample:07d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(shards.read(sample))


def measure(shards: ShardSet, folder: Path, size: int, batch: int, rounds: int) -> dict[str, Any]:
    """Figures of both kinds of arms; the first round warms up and does not count."""
    encoded = [shards.read(sample) for sample in range(len(shards))]
    kinds: dict[str, dict[str, list[float]]] = {"transform": {}, "loader": {}}
    others, missing = rivals(size, AT_ONCE)
    arms = transforms(size) | others
    for turn in range(rounds + 1):
        torch.manual_seed(turn)
        for name, arm in arms.items():
            start = time.process_time()
            for row in range(0, len(encoded), AT_ONCE):
                arm(encoded[row : row + AT_ONCE], turn * len(encoded) + row)
            kinds["transform"].setdefault(name, []).append((time.process_time() - start) / len(encoded))
        for name, arm in loaders(shards, folder, size, batch).items():
            start, images = time.process_time(), 0
            for loaded in arm(turn):
                images += len(loaded["image"] if isinstance(loaded, dict) else loaded[0])
            kinds["loader"].setdefault(name, []).append((time.process_time() - start) / images)
    figures: dict[str, Any] = {"images": len(shards), "size": size, "batch": batch, "rounds": rounds}
    for kind, taken in kinds.items():
        ours = taken[OURS][1:]
        figures[kind] = {
            name: {
                "images_per_s": statistics.median(1 / seconds for seconds in times[1:]),
                "ours_over_it": statistics.median(b / a for a, b in zip(ours, times[1:], strict=True)),
            }
            for name, times in taken.items()
        }
    figures["left_out"] = missing
    figures["crops"] = crops(encoded)
    figures["fidelity"] = fidelity(encoded, size)
    figures["reduced_scale"] = reduced_scale(encoded)
    return figures


def crops(encoded: list[bytes]) -> list[dict[str, Any]]:
    """Where our crops lie beside timm's on the same images: deciles, and how far the two laws are apart.

    Returns:
        For each property `ours` and `timm`, the 10th, 50th and 90th percentile, `distance`, the largest difference of
            the two cumulative distributions (Kolmogorov-Smirnov), and `chance`, what it exceeds once in 1,000 times
            where the laws are one.
    """
    sizes, theirs = [_pil(data).size for data in encoded], timm.data.transforms.RandomResizedCropAndInterpolation
    rng, drawn = np.random.default_rng(0), {"ours": [], "timm": []}
    random.seed(0)  # timm draws from there
    for number in range(CROPS):
        width, height = sizes[number % len(sizes)]
        left, top, right, bottom = random_crop_box(width, height, SCALE, RATIO, rng)
        drawn["ours"].append((width, height, left, top, right - left, bottom - top))
        y, x, h, w = theirs.get_params(Image.new("1", (width, height)), SCALE, RATIO)
        drawn["timm"].append((width, height, x, y, w, h))
    found = {}
    for who, rows in drawn.items():
        width, height, x, y, w, h = np.array(rows, dtype=float).T
        found[who] = {
            "share of the area": w * h / (width * height),
            "width / height": w / h,
            "centre from the left": (x + w / 2) / width,
            "centre from the top": (y + h / 2) / height,
        }
    chance = 1.95 * (2 / CROPS) ** 0.5
    distance = load_scipy().stats.ks_2samp
    return [
        {"property": name}
        | {who: np.quantile(found[who][name], (0.1, 0.5, 0.9)).tolist() for who in found}
        | {"distance": float(distance(found["ours"][name], found["timm"][name]).statistic), "chance": chance}
        for name in found["ours"]
    ]


def fidelity(encoded: list[bytes], size: int) -> dict[str, float]:
    """Our crops against PIL's of the wholly decoded image, in dB of PSNR; PIL's other filter shows the scale."""
    bicubic, rng, ours, other, reduced, rows = Image.Resampling.BICUBIC, np.random.default_rng(0), [], [], 0, []
    for data in encoded:
        image, partial = decode(data), Jpeg.open(data)
        box = random_crop_box(*image.size, SCALE, RATIO, rng)
        exact = np.asarray(image.resize((size, size), bicubic, box))
        bilinear = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box))
        pixels = resize(cut(partial or image, box, size), size, bicubic)
        ours.append(psnr(pixels.permute(1, 2, 0).numpy(), exact))
        other.append(psnr(bilinear, exact))
        reduced += partial is not None and partial.reduction(box, size) > 1
        rows.append(box[3] / image.size[1])
    return {
        "psnr_median_db": statistics.median(ours),
        "psnr_least_db": min(ours),
        "bilinear_median_db": statistics.median(other),
        "share_of_crops_reduced": reduced / len(encoded),
        "share_of_rows_above_the_lower_edge": statistics.mean(rows),
    }


def reduced_scale(encoded: list[bytes]) -> list[dict[str, float]]:
    """What decoding at half the scale costs, by how many pixels it leaves for one of the output, in dB of PSNR."""
    bicubic, records = Image.Resampling.BICUBIC, []
    jpegs = [partial for partial in map(Jpeg.open, encoded) if partial is not None and min(partial.size) > 100]
    for left in (1.0, 1.5, 2.0, 3.0) if len(jpegs) > 1 else ():
        rng, half, other = np.random.default_rng(0), [], []
        for partial in jpegs:
            whole = Image.fromarray(partial.rows(partial.size[1]))
            reduced = Image.fromarray(partial.rows(partial.size[1], 2))
            box = random_crop_box(*partial.size, SCALE, RATIO, rng)
            side = int(min(box[2] - box[0], box[3] - box[1]) / (2 * left))
            exact = np.asarray(whole.resize((side, side), bicubic, box))
            small = np.asarray(reduced.resize((side, side), bicubic, tuple(edge / 2 for edge in box)))
            half.append(psnr(small, exact))
            other.append(psnr(np.asarray(whole.resize((side, side), Image.Resampling.BILINEAR, box)), exact))
        figures = (statistics.median(half), statistics.quantiles(half, n=100)[0], statistics.median(other))
        names = ("psnr_median_db", "psnr_first_percentile_db", "bilinear_median_db")
        records.append({"pixels_left_for_one": left} | dict(zip(names, figures, strict=True)))
    return records


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.square(one.astype(float) - other).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-3)))


def markdown(result: dict[str, Any]) -> str:
    """The result as Markdown tables."""
    lines = [f"{result['images']} images, {result['size']} px, one {result['machine']['processor']} core"]
    for kind in ("transform", "loader"):
        lines += ["", f"| {kind} | images/s | vitwarm over it |", "|---|---:|---:|"]
        for name, arm in result[kind].items():
            lines.append(f"| {name} | {arm['images_per_s']:.0f} | {arm['ours_over_it']:.2f}x |")
    if result["left_out"]:
        lines += ["", "Left out: " + "; ".join(f"{name} ({why})" for name, why in result["left_out"].items())]
    lines += ["", "| crops: 10th, 50th, 90th percentile | vitwarm | timm | distance of the laws | by chance |"]
    lines += ["|---|---|---|---:|---:|"]
    for row in result["crops"]:
        ours, theirs = (" ".join(f"{value:.3f}" for value in row[who]) for who in ("ours", "timm"))
        lines.append(f"| {row['property']} | {ours} | {theirs} | {row['distance']:.4f} | up to {row['chance']:.4f} |")
    seen = result["fidelity"]
    lines += [
        "",
        f"Against PIL on the whole image: {seen['psnr_median_db']:.1f} dB in the median, "
        f"{seen['psnr_least_db']:.1f} dB at least (bilinear for bicubic: {seen['bilinear_median_db']:.1f} dB); "
        f"{100 * seen['share_of_crops_reduced']:.1f} % of the crops decoded at a reduced scale, "
        f"{100 * seen['share_of_rows_above_the_lower_edge']:.0f} % of the rows decoded.",
    ]
    if not result["reduced_scale"]:
        return "\n".join(lines)
    lines += ["", "| pixels for one after halving | PSNR, median | first percentile | bilinear for bicubic, median |"]
    lines += ["|---:|---:|---:|---:|"]
    for row in result["reduced_scale"]:
        left, *figures = row.values()
        lines.append(f"| {left:g} | " + " | ".join(f"{figure:.1f} dB" for figure in figures) + " |")
    return "\n".join(lines)


def read_options(
    arguments: list[str], numbers: dict[str, int], words: tuple[str, ...]
) -> tuple[dict[str, Any], Path | None]:
    """Options and the JSON file of a command line.

    Args:
        arguments: `key=value`, and `--json FILE`.
        numbers: whole numbers above 0, with their defaults.
        words: the other options; `shards` must be given.

    Raises:
        UserError: one that is not known or makes no sense.
    """
    file, pairs = None, []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--json":
            file = Path(next(rest, ""))
            if not file.name or not file.parent.is_dir():
                raise UserError(f"--json takes the path of a file in a folder that exists, not {str(file)!r}")
        else:
            pairs.append(argument.partition("="))
    options: dict[str, Any] = dict(numbers)
    for key, equals, value in pairs:
        if key in numbers and value.isdigit() and int(value) > 0:
            options[key] = int(value)
        elif key in words and equals and value:
            options[key] = value
        else:
            raise UserError(f"cannot use {key + equals + value!r}; see its --help")
    if "shards" not in options:
        raise UserError("which shards? give shards=FOLDER_OF_TARS")
    return options, file


def run(options: dict[str, Any]) -> dict[str, Any]:
    """Measure, and add what it was measured on."""
    shards = ShardSet(expand(options["shards"]))
    size, batch, rounds = (options[name] for name in NUMBERS)
    if len(shards) < batch:
        raise UserError(f"{options['shards']} holds {len(shards)} images, fewer than batch={batch}; use a smaller one")
    torch.set_num_threads(1)
    logging.getLogger("timm").setLevel(logging.ERROR)  # it misses an _info.json, which it does not need
    with tempfile.TemporaryDirectory(prefix="vitwarm-") as temporary:
        folder = Path(options.get("folder", temporary)).expanduser()
        if "folder" not in options:
            unpack(shards, folder)
        elif not folder.is_dir():
            raise UserError(f"folder={folder} is not there; leave it out to unpack the shards")
        result = measure(shards, folder, size, batch, rounds)
    versions = {module.__name__: module.__version__ for module in (timm, torch, torchvision)}
    decoder = "simplejpeg" if decoding.simplejpeg else "Pillow"
    return result | {"machine": {"processor": processor()}, "decoder": decoder, "versions": versions}


def serve(
    doc: str | None,
    arguments: list[str],
    numbers: dict[str, int],
    words: tuple[str, ...],
    run: Callable[[dict[str, Any]], dict[str, Any]],
    markdown: Callable[[dict[str, Any]], str],
) -> int:
    """A command that measures on shards: help, options, the tables, the file; 0, or 2 for a user's mistake."""
    if {"-h", "--help"} & set(arguments):
        print((doc or "").strip())
        return 0
    try:
        options, file = read_options(arguments, numbers, words)
        result = run(options)
    except UserError as error:
        print(f"vitwarm: error: {error}", file=sys.stderr)
        return 2
    print(markdown(result))
    if file:
        write_text(file, json.dumps(result, indent=1) + "\n")
    return 0


def main(arguments: list[str]) -> int:
    """The command; the exit code is 0, or 2 for a user's mistake."""
    return serve(__doc__, arguments, NUMBERS, ("shards", "folder"), run, markdown)
