"""`vitwarm train` that also writes down what each process was given: argument 1 is the folder for it."""

import hashlib
import json
import os
import sys
from pathlib import Path


def recorded(batches, stage_name, folder):
    def wrapped(self, start, rank, world, device_batch):
        share = self.optim.global_batch // world
        with open(folder / f"{stage_name}-{world}-{rank}.jsonl", "w", encoding="utf-8") as out:
            for i, batch in enumerate(batches(self, start, rank, world, device_batch)):
                warmup = stage_name == "warmup"
                rows = batch.tokens if warmup else batch.images
                entry = {
                    "step": start + i * device_batch // share,
                    "rows": [hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in rows],
                    "ids": None if warmup else batch.sample.tolist(),
                    "targets": (batch.targets if warmup else batch.labels).tolist(),
                }
                out.write(json.dumps(entry) + "\n")
                out.flush()
                yield batch

    return wrapped


def record(folder):
    """From now on, stages write down their batches there."""
    from vitwarm.stages.images import ImagesStage
    from vitwarm.stages.warmup import WarmupStage

    for stage in (WarmupStage, ImagesStage):
        stage.batches = recorded(stage.batches, stage.name, folder)


if __name__ == "__main__":
    from vitwarm.cli import tool

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    record(Path(sys.argv.pop(1)))
    tool("train")
