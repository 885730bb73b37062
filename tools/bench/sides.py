"""What `make-shards max_side=N` costs and gives: pixels, bytes, images a second on one core.

    python tools/benchmark.py sides shards=SHARDS [sides=256,320,400] [quality=90] [size=224] [rounds=9] [--json FILE]

SHARDS hold images of full size. Each is made smaller as make-shards does it, in memory. Pixels are compared with those
of the full image in dB of PSNR: PIL's bicubic resize of the same random crops (the same shares of width and height),
and the centre crop of evaluation at crop_pct 0.875. Times are CPU seconds of the transforms of training and of
evaluation on one thread, from encoded images in memory; sides alternate round by round, figures are medians.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.data import AT_ONCE, psnr, serve
from bench.machine import processor
from bench.rivals import RATIO, SCALE
from vitwarm.data.cropping import random_crop_box
from vitwarm.data.decoding import MAX_PIXELS, decode
from vitwarm.data.images import EvalTransform, TrainTransform
from vitwarm.data.making.encode import MaxSide, checked
from vitwarm.data.shards import ShardSet, expand
from vitwarm.errors import UserError
from vitwarm.keys import keyed_rng

NUMBERS = {"size": 224, "quality": 90, "rounds": 9}
FULL = "full size"


def stored(encoded: list[bytes], max_side: MaxSide | None) -> tuple[list[bytes], float]:
    """The images as make-shards stores them, and the CPU seconds that one takes."""
    start = time.process_time()
    made = [checked(data, MAX_PIXELS, max_side)[0] for data in encoded]
    return made, (time.process_time() - start) / len(encoded)


def fidelity(encoded: list[bytes], made: list[bytes], size: int) -> dict[str, float]:
    """Crops of the smaller images against those of the full ones, in dB of PSNR."""
    rng, evaluation, train, val = np.random.default_rng(0), EvalTransform(size), [], []
    for data, small in zip(encoded, made, strict=True):
        image, other = decode(data), decode(small)
        box = random_crop_box(*image.size, SCALE, RATIO, rng)
        scaled = tuple(edge * other.size[i % 2] / image.size[i % 2] for i, edge in enumerate(box))
        sides, bicubic = (size, size), Image.Resampling.BICUBIC
        train.append(
            psnr(np.asarray(other.resize(sides, bicubic, scaled)), np.asarray(image.resize(sides, bicubic, box)))
        )
        val.append(psnr(evaluation(other).numpy(), evaluation(image).numpy()))
    return {
        "train_median_db": statistics.median(train),
        "train_tenth_percentile_db": float(np.quantile(train, 0.1)),
        "evaluation_median_db": statistics.median(val),
    }


def seconds(transform: Any, encoded: list[bytes], turn: int) -> float:
    """CPU seconds an image takes."""
    start = time.process_time()
    for row in range(0, len(encoded), AT_ONCE):
        states: list[Any] = encoded[row : row + AT_ONCE]
        rngs = [keyed_rng(0, "images", "augment", turn, row + i) for i in range(len(states))]
        for phase in transform.phases:
            states = [phase(state, rng) for state, rng in zip(states, rngs, strict=True)]
    return (time.process_time() - start) / len(encoded)


def measure(encoded: list[bytes], sides: list[int], quality: int, size: int, rounds: int) -> list[dict[str, Any]]:
    """One record for the full size, and one for each side; the first round warms up and does not count."""
    arms, rows = {FULL: encoded}, {FULL: {"side": FULL, "made_per_s": 1 / stored(encoded, None)[1]}}
    for side in sides:
        name, max_side = str(side), MaxSide(side, quality)
        arms[name], spent = stored(encoded, max_side)
        changed = sum(one is not other for one, other in zip(encoded, arms[name], strict=True))
        rows[name] = {"side": side, "share_made_smaller": changed / len(encoded), "made_per_s": 1 / spent}
        rows[name] |= fidelity(encoded, arms[name], size)
    kinds: dict[str, Callable[..., Any]] = {"train": TrainTransform(size), "evaluation": EvalTransform(size)}
    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds + 1):
        for kind, transform in kinds.items():
            for name, images in arms.items():
                times.setdefault((kind, name), []).append(seconds(transform, images, turn))
    for name, images in arms.items():
        rows[name]["kilobytes"] = sum(map(len, images)) / len(images) / 1e3
        for kind in kinds:
            own, full = times[kind, name][1:], times[kind, FULL][1:]
            rows[name][f"{kind}_images_per_s"] = statistics.median(1 / one for one in own)
            rows[name][f"{kind}_over_full_size"] = statistics.median(b / a for a, b in zip(own, full, strict=True))
    return list(rows.values())


def markdown(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = [
        f"{result['images']} images, {result['size']} px, quality {result['quality']}, one {result['processor']} core",
        "",
        "| shorter side at most | images made smaller | kB an image | train, images/s | over full size "
        "| evaluation, over full size | train crop, PSNR: median, 10th percentile | evaluation crop |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        changed, pixels = "", ["", ""]
        if row["side"] != FULL:
            changed = f"{100 * row['share_made_smaller']:.0f} %"
            pixels = [f"{row['train_median_db']:.1f}, {row['train_tenth_percentile_db']:.1f} dB"]
            pixels += [f"{row['evaluation_median_db']:.1f} dB"]
        speed = f"{row['train_images_per_s']:,.0f} | {row['train_over_full_size']:.2f}x | "
        speed += f"{row['evaluation_over_full_size']:.2f}x"
        lines.append(f"| {row['side']} | {changed} | {row['kilobytes']:.0f} | {speed} | {' | '.join(pixels)} |")
    return "\n".join(lines)


def run(options: dict[str, Any]) -> dict[str, Any]:
    """Measure, and add what it was measured on."""
    shards = ShardSet(expand(options["shards"]))
    words = str(options.get("sides", "256,320,400")).split(",")
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise UserError(f"sides={options['sides']}: whole numbers above 0, with commas")
    torch.set_num_threads(1)
    encoded = [shards.read(sample) for sample in range(len(shards))]
    told = {name: options[name] for name in NUMBERS}
    rows = measure(
        encoded, [int(word) for word in words], **{name: told[name] for name in ("quality", "size", "rounds")}
    )
    return told | {"images": len(encoded), "rows": rows, "processor": processor()}


def main(arguments: list[str]) -> int:
    """The command; the exit code is 0, or 2 for a user's mistake."""
    return serve(__doc__, arguments, NUMBERS, ("shards", "sides"), run, markdown)
