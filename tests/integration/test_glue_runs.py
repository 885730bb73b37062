"""A task of GLUE on one process and on two: the same batches, and metrics that are equal and not nearly so."""

import numpy as np
import pytest
import yaml
from gluemaking import write
from harness import Command, log

TINY = {
    "description": "tiny",
    "model": {"decoder": {"size": "2_2_8"}},
    "warmup": {"budget": "0"},
    "text": {"task": "mrpc", "length": 24, "budget": "2 epochs", "eval_every": 4},
    "train": {"global_batch": 8, "lr": 1e-2, "lr_warmup": "2 steps"},
    "run": {"log_every": 1, "device_batch": 4, "workers": 1},
}


def test_one_process_or_two(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "dev"):
        words = rng.choice(["a", "bb", "a long sentence"], size=(37, 2))
        write(tmp_path / "MRPC" / f"{split}.tsv", "mrpc", [(str(len(a) % 2), a, b) for a, b in words])
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    runs = []
    for world in (1, 2):
        runs.append(tmp_path / str(world))
        arguments = [f"recipe={tmp_path / 'tiny.yaml'}", f"text.train={tmp_path / 'MRPC'}", f"run.dir={runs[-1]}"]
        command = Command(arguments, tmp_path, world=world)
        assert command.wait() == 0, command.err
    for one, two in zip(*(log(run) for run in runs), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    evaluations = [log(run, "eval") for run in runs]
    assert len(evaluations[0]) == 3
    for one, two in zip(*evaluations, strict=True):
        assert one["count"] == two["count"] == 37
        assert (one["accuracy"], one["f1"]) == (two["accuracy"], two["f1"])
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
