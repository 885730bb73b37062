"""FSDP2 on the CPU, two gloo processes: the weights of a plain run, whole checkpoints, elastic between both kinds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.optim import list_optimizers

from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.recipe import load_recipe
from vitwarm.run import run
from vitwarm.training.elementwise import ELEMENTWISE
from vitwarm.training.sharding import check_shardable, fsdp_requested

ROOT = Path(__file__).parents[2]
TINY = [
    "recipe=digits_proc", "model.name=test_vit", "model.args={img_size: 8, patch_size: 4}", "run.workers=0",
    "warmup.budget=3 steps", "warmup.lr_warmup=1 steps", "warmup.global_batch=8", "warmup.val_rows=5",
    "warmup.weight_decay=0.3", "warmup.eps=1e-3", "train.eps=1e-3", "train.global_batch=12",
    "train.lr_warmup=1 steps", "train.clip_grad=0.5", "train.layer_decay=0.8", "images.epochs=0.04",
    "images.mixup=0.8", "run.device_batch=2", "run.log_every=1",
]  # fmt: skip
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
WORKER = """
import json, sys
import torch.distributed as dist
from vitwarm.recipe import load_recipe
from vitwarm.run import run
for arguments in json.loads(sys.argv[1]):
    run(load_recipe(arguments))
dist.destroy_process_group()  # as the commands do: gloo's threads may abort a process that leaves without
"""

# Each elementwise optimiser steps a sharded model beside a plain one; midway its state goes through whole tensors into
# a fresh optimiser. Prints what went wrong, by name.
OPTIMISERS = """
import copy, json, os, torch
import torch.distributed as dist
from torch import nn
from timm.optim import list_optimizers
from vitwarm.config import OptimConfig
from vitwarm.training.checkpoint import optimizer_tensors, optimizer_values, restore_optimizer
from vitwarm.recipe import load_recipe
from vitwarm.run import run
from vitwarm.training.elementwise import ELEMENTWISE
from vitwarm.training.optimizers import make_optimizer
from vitwarm.training.sharding import Sharded, gather_all

def build(optim, model):
    groups = [{"params": [p], "weight_decay": d} for p, d in zip(model.parameters(), (0.1, 0.0, 0.1, 0.0))]
    return make_optimizer(optim, groups, model)

def distance(name):
    torch.manual_seed(0)
    plain, optim = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)), OptimConfig(optimizer=name, lr=1e-2)
    start = [p.detach().clone() for p in plain.parameters()]
    sharded = Sharded(copy.deepcopy(plain), [])
    both = [(m, build(optim, m)) for m in (plain, sharded.model)]
    for step in range(4):
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(step))
        for model, optimizer in both:
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        if step == 1:
            model, optimizer = both[1]
            tensors = gather_all(optimizer_tensors(model, optimizer), keep=True)
            values = optimizer_values(model, optimizer)
            both[1] = model, build(optim, model)
            restore_optimizer(model, both[1][1], tensors, values)
    pairs = list(zip(plain.parameters(), sharded.gathered().parameters(), start))
    return max(float((a - b).abs().max() / (a - c).abs().max()) for a, b, c in pairs)

dist.init_process_group("gloo")
found = {}
for name in sorted(ELEMENTWISE & set(list_optimizers())):  # an older timm knows fewer
    try:
        found[name] = distance(name)
    except Exception as error:
        found[name] = repr(error)
if dist.get_rank() == 0:
    print("FOUND " + json.dumps(found), flush=True)
dist.destroy_process_group()
os._exit(0)  # the many groups of its meshes leave threads, at which an interpreter that ends by itself may abort
"""


def recipe(folder: Path, *overrides: str) -> list[str]:
    return [*TINY, f"run.dir={folder}", "run.checkpoint_every=2", "run.keep_last=9", *overrides]


def two_sharded(*recipes: list[str]) -> None:
    """Runs on 2 processes, one after the other."""
    two_processes(WORKER, json.dumps(recipes))


def two_processes(program: str, *arguments: str) -> str:
    """What a program prints on 2 processes; the environment is what accelerate makes of its configuration."""
    environment = os.environ | FSDP | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]
    command = [*launcher, sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def close(a: Path, b: Path) -> None:
    ours, theirs = load_file(a), load_file(b)
    assert ours.keys() == theirs.keys() and len(ours) > 50
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_two_sharded_processes_do_what_one_does_and_either_goes_on_from_the_other(tmp_path):
    torch.set_num_threads(1)
    one, two = tmp_path / "one", tmp_path / "two"
    run(load_recipe(recipe(one)))
    middle = sorted((one / "checkpoints").iterdir())[1].name
    onward = recipe(tmp_path / "from_plain", f"resume_from={one / 'checkpoints' / middle}")
    two_sharded(recipe(two), onward)
    run(load_recipe(recipe(tmp_path / "from_sharded", f"resume_from={two / 'checkpoints' / middle}")))

    last = sorted((one / "checkpoints").iterdir())[-1].name
    for file in ("model.safetensors", "optimizer.safetensors"):
        close(two / "checkpoints" / last / file, one / "checkpoints" / last / file)
    close(two / "warmup/model.safetensors", one / "warmup/model.safetensors")
    for other in ("two", "from_plain", "from_sharded"):
        close(tmp_path / other / "export/model.safetensors", one / "export/model.safetensors")
    ours, theirs = (result(folder)["stages"] for folder in (two, one))
    for stage in ("warmup", "images"):
        assert ours[stage]["metrics"]["count"] == theirs[stage]["metrics"]["count"]
        assert ours[stage]["metrics"]["loss"] == pytest.approx(theirs[stage]["metrics"]["loss"], rel=1e-3)
        assert ours[stage]["flops"] == theirs[stage]["flops"]


def test_elementwise_optimisers_do_to_shards_what_they_do_to_the_whole():
    printed = two_processes(OPTIMISERS)
    found = json.loads(printed.split("FOUND ")[1].splitlines()[0])
    assert set(found) == ELEMENTWISE & set(list_optimizers())
    assert {name: value for name, value in found.items() if isinstance(value, str) or value > 1e-3} == {}


def test_what_is_not_supported_is_refused_in_one_line(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("FSDP_", "ACCELERATE_"))]:
        monkeypatch.delenv(name)
    assert not fsdp_requested()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="only FSDP2"):
        fsdp_requested()
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert fsdp_requested()
    for option, why in (("FSDP_OFFLOAD_PARAMS", "offload"), ("FSDP_ACTIVATION_CHECKPOINTING", "grad_checkpointing")):
        monkeypatch.setenv(option, "true")
        with pytest.raises(UserError, match=why):
            fsdp_requested()
        monkeypatch.setenv(option, "false")
    config = Config()
    check_shardable(config)
    config.train.ema = 0.999
    with pytest.raises(UserError, match="train.ema is not supported under FSDP"):
        check_shardable(config)
    config.train.ema, config.warmup.optimizer = None, "lamb"
    with pytest.raises(UserError, match="warmup.optimizer=lamb works on whole tensors"):
        check_shardable(config)
    config.warmup.optimizer, config.warmup.optimizer_args = "lion", {"caution": True}
    with pytest.raises(UserError, match="warmup.optimizer=lion with these arguments works on whole tensors"):
        check_shardable(config)


def test_accelerates_launcher_makes_that_request_of_the_shipped_configuration():
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    path = ROOT / "recipes/accelerate/fsdp2.yaml"
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "tools/train.py"])
    made = prepare_multi_gpu_env(_validate_launch_command(arguments)[0])
    assert {name: made[name] for name in FSDP} == FSDP
    assert made["FSDP_RESHARD_AFTER_FORWARD"].lower() == "true" and made["ACCELERATE_MIXED_PRECISION"] == "no"
    assert made["FSDP_OFFLOAD_PARAMS"].lower() == made["FSDP_ACTIVATION_CHECKPOINTING"].lower() == "false"
