"""What ran on one process goes on on two, then on four: the batches and the weights of a run that one carried out."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from harness import Command, log, write_recipe
from safetensors.torch import load_file
from test_processes_agree import by_step

RECORD = f"""
import pathlib, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from recorded_train import record
record(pathlib.Path({{folder!r}}))
"""
STOP = """
import os, signal, torch
step, left = torch.optim.AdamW.step, [{after}]
def counted(self):
    left[0] -= 1
    if left[0] == 0 and os.environ.get("RANK", "0") == "0":
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self)
torch.optim.AdamW.step = counted
"""


@pytest.fixture
def recipe(tmp_path, tars_of):
    images = {"train": str(tars_of(40)), "val": str(tars_of(9, first=100)), "epochs": 4}  # 10 steps, of 40 images
    free = {"model": {"args": {"drop_path_rate": 0.0}}, "warmup": {"ema": None}}  # its draws are each process's own
    train = {"global_batch": 16, "lr_warmup": "2 steps"}
    return write_recipe(tmp_path, **free, images=images, train=train, run={"device_batch": None})


def test_one_then_two_then_four_processes(tmp_path, recipe):
    for folder in ("cut", "whole"):
        (tmp_path / folder).mkdir()

    def carry_on(folder: str, world: int, after: int = 0) -> Command:
        before = RECORD.format(folder=str(tmp_path / folder)) + (STOP.format(after=after) if after else "")
        arguments = [f"recipe={recipe}", f"run.dir={tmp_path / folder / 'run'}"]
        return Command(arguments, tmp_path, world=world, before=before)

    whole = carry_on("whole", 1)
    assert whole.wait() == 0, whole.err
    for world, after in ((1, 6), (2, 7), (4, 0)):  # stopped in the warm-up, then in the images
        command = carry_on("cut", world, after)
        assert command.wait() == (75 if after else 0), command.err
    shown = {world: by_step(tmp_path / "cut", "images", world) for world in (2, 4)}
    assert min(shown[2]) == 0 and min(shown[4]) == max(shown[2]) + 1
    for stage, worlds in (("warmup", (1, 2)), ("images", (2, 4))):
        parts = [by_step(tmp_path / "cut", stage, world) for world in worlds]
        assert all(parts) and not parts[0].keys() & parts[1].keys()
        assert parts[0] | parts[1] == by_step(tmp_path / "whole", stage, 1)
    order = [image for _, (_, ids, _) in sorted((shown[2] | shown[4]).items()) for image in ids]
    epochs = [Counter(order[start : start + 40]) for start in range(0, len(order), 40)]
    assert len(epochs) == 4 and all(epoch == Counter(range(40)) for epoch in epochs)

    runs = tmp_path / "cut/run", tmp_path / "whole/run"
    losses = [[e["loss"] for e in log(run)] for run in runs]
    assert len(losses[1]) == 20 and losses[0] == pytest.approx(losses[1], rel=1e-5)
    found, expected = (load_file(run / "export/model.safetensors") for run in runs)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
