"""Where the time of the loader goes: its parts beside the transform alone, and its workers.

    python tools/benchmark.py workers shards=SHARDS [size=224] [batch=50] [passes=4] [rounds=7] [--json FILE]

Times are CPU seconds an image takes, of this process and of the workers together, on one thread each; a loader's first
batch and the start of its workers are among them, spread over `passes` passes over the images. The clock's images a
second say what the workers give on this machine as it was; parts and loaders alternate round by round, figures are
medians, ratios medians of the ratio within a round.
"""

import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.data import serve
from bench.machine import processor
from bench.sides import seconds
from vitwarm.data.images import TrainTransform
from vitwarm.data.loading import ImageDataset, _collate, train_loader
from vitwarm.data.order import ImageOrder
from vitwarm.data.shards import ShardSet, expand
from vitwarm.errors import UserError
from vitwarm.keys import keyed_rng

NUMBERS = {"size": 224, "batch": 50, "passes": 4, "rounds": 7}
WORKERS = (0, 1, 2)
REPEATS = 20


def cpu() -> tuple[float, float]:
    """CPU seconds of this process, and of those that it has waited for."""
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime, others.ru_utime + others.ru_stime


def parts(shards: ShardSet, transform: TrainTransform, batch: int) -> dict[str, Callable[[int], float]]:
    """Parts of the loader, each from the number of a round to CPU seconds an image takes."""
    encoded, dataset = [shards.read(sample) for sample in range(len(shards))], ImageDataset(shards, transform)
    samples = dataset.__getitems__([(0, sample) for sample in range(batch)])
    assert isinstance(samples, list)

    def timed(work: Callable[[int], Any], images: int) -> Callable[[int], float]:
        def part(turn: int) -> float:
            start = time.process_time()
            work(turn)
            return (time.process_time() - start) / images

        return part

    every = range(len(shards))
    return {
        "transform, with its generators": lambda turn: seconds(transform, encoded, turn),
        "of these the generators": timed(
            lambda turn: [keyed_rng(0, "images", "augment", turn, sample) for sample in every], len(every)
        ),
        "read": timed(lambda turn: [shards.read(sample) for sample in every], len(every)),
        "collate in this process": timed(
            lambda turn: _repeat(lambda: _collate([dict(one) for one in samples])), REPEATS * batch
        ),
        "the pixels into new shared memory, as a worker": timed(
            lambda turn: _repeat(lambda: _shared([one["image"] for one in samples])), REPEATS * batch
        ),
    }


def _shared(images: list[torch.Tensor]) -> torch.Tensor:
    """The batch as torch's own collate makes it in a worker."""
    storage = torch.UntypedStorage._new_shared(sum(image.nbytes for image in images))
    batch = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (len(images), *images[0].permute(1, 2, 0).shape))
    return torch.stack([image.permute(1, 2, 0) for image in images], out=batch)


def _repeat(work: Callable[[], Any]) -> None:
    for _ in range(REPEATS):
        work()


def loader(dataset: ImageDataset, workers: int, batch: int, passes: int, turn: int) -> dict[str, float]:
    """One iteration over `passes` passes: CPU seconds an image takes here and in workers, and by the clock."""
    steps = passes * (len(dataset) // batch)
    order = ImageOrder(len(dataset), batch, seed=0)
    target = torch.empty(batch, *dataset.transform.shape, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    started, (own, others) = time.perf_counter(), cpu()
    for loaded in train_loader(dataset, order, turn * steps, (turn + 1) * steps, workers=workers):
        target.copy_(loaded["image"])  # as to a pinned buffer
    clock = time.perf_counter() - started
    for child in multiprocessing.active_children():
        child.join()
    spent, images = [after - before for before, after in zip((own, others), cpu(), strict=True)], steps * batch
    return {"here": spent[0] / images, "workers": spent[1] / images, "clock": clock / images}


def measure(shards: ShardSet, size: int, batch: int, passes: int, rounds: int) -> dict[str, Any]:
    """Microseconds of each part and loader; the first round warms up and does not count."""
    transform = TrainTransform(size)
    dataset, taken = ImageDataset(shards, transform), parts(shards, transform, batch)
    times: dict[str, list[float]] = {}
    loads: dict[int, list[dict[str, float]]] = {}
    for turn in range(rounds + 1):
        for name, part in taken.items():
            times.setdefault(name, []).append(part(turn))
        for workers in WORKERS:
            loads.setdefault(workers, []).append(loader(dataset, workers, batch, passes, turn))
    alone = times["transform, with its generators"][1:]
    rows = []
    for workers, counted in loads.items():
        counted = counted[1:]
        median = {name: statistics.median(one[name] for one in counted) for name in counted[0]}
        rows.append(
            {
                "workers": workers,
                "cpu_us_here": 1e6 * median["here"],
                "cpu_us_workers": 1e6 * median["workers"],
                "cpu_over_transform": statistics.median(
                    (one["here"] + one["workers"]) / own for one, own in zip(counted, alone, strict=True)
                ),
                "images_per_s_by_the_clock": 1 / median["clock"],
                "clock_over_one_worker": statistics.median(
                    one["clock"] / own["clock"] for own, one in zip(counted, loads[1][1:], strict=True)
                ),
            }
        )
    return {"parts_us": {name: 1e6 * statistics.median(one[1:]) for name, one in times.items()}, "loaders": rows}


def markdown(result: dict[str, Any]) -> str:
    """The result as Markdown tables."""
    lines = [f"{result['images']} images, {result['size']} px, {result['processor']}, {result['cpus']} CPUs"]
    lines += ["", "| part | CPU, us an image |", "|---|---:|"]
    lines += [f"| {name} | {figure:.0f} |" for name, figure in result["parts_us"].items()]
    lines += ["", "| workers | CPU of the main process, us an image | of the workers | all, over the transform alone "]
    lines[-1] += "| images/s by the clock | over one worker |"
    lines += ["|---:|---:|---:|---:|---:|---:|"]
    for row in result["loaders"]:
        lines.append(
            f"| {row['workers']} | {row['cpu_us_here']:.0f} | {row['cpu_us_workers']:.0f} "
            f"| {row['cpu_over_transform']:.2f}x | {row['images_per_s_by_the_clock']:.0f} "
            f"| {row['clock_over_one_worker']:.2f}x |"
        )
    return "\n".join(lines)


def run(options: dict[str, Any]) -> dict[str, Any]:
    """Measure, and add what it was measured on."""
    shards = ShardSet(expand(options["shards"]))
    told = {name: options[name] for name in NUMBERS}
    if len(shards) < told["batch"]:
        raise UserError(f"{options['shards']} holds {len(shards)} images, fewer than batch={told['batch']}")
    torch.set_num_threads(1)
    machine = {"processor": processor(), "cpus": os.cpu_count()}
    return told | {"images": len(shards)} | machine | measure(shards, **told)


def main(arguments: list[str]) -> int:
    """The command; the exit code is 0, or 2 for a user's mistake."""
    return serve(__doc__, arguments, NUMBERS, ("shards",), run, markdown)
