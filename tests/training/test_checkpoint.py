"""Checkpoints are whole or absent, damage is noticed, and what comes back is bit for bit what went in."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vitwarm.errors import UserError
from vitwarm.training.checkpoint import (
    Checkpoints,
    State,
    optimizer_tensors,
    read_state,
    read_tensors,
    restore_optimizer,
)


def state(run_step, **changes):
    return State(**({"stage": "toy", "step": run_step, "run_step": run_step, "recipe_hash": "h"} | changes))


def tensors(value=0.0):
    return {"model": {"w": torch.full((3, 4), value)}, "optimizer": {"w/step": torch.tensor(value)}}


def saved(folder, steps, keep_last=10):
    checkpoints = Checkpoints(folder, keep_last)
    for step in steps:
        checkpoints.save(state(step), tensors(step))
    return checkpoints


def test_what_is_read_is_what_was_saved(tmp_path):
    before = state(7, log_bytes=99, totals={"seconds": 1.5}, best={"run_step": 5, "value": 0.25}, damaged=["a", "b"])
    path = Checkpoints(tmp_path, 1).save(before, tensors(0.1))
    assert read_state(path) == before
    assert torch.equal(read_tensors(path, "model")["w"], torch.full((3, 4), 0.1))
    assert read_tensors(path, "ema") == {}


def test_a_checkpoint_holds_safetensors_and_json_only(tmp_path):
    path = Checkpoints(tmp_path, 1).save(state(1), tensors())
    assert sorted(p.name for p in path.iterdir()) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    load_file(path / "model.safetensors")
    json.loads((path / "state.json").read_text())


@pytest.mark.parametrize("moment", ["training.checkpoint.save_file", "training.checkpoint.sha256_of", "files.flush"])
def test_a_failure_while_writing_leaves_nothing_new(tmp_path, monkeypatch, moment):
    checkpoints = saved(tmp_path, [1])

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"vitwarm.{moment}", fail)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(state(2), tensors())
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_what_a_kill_leaves_is_no_checkpoint_and_is_written_over(tmp_path):
    checkpoints = saved(tmp_path, [1])
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".step-00000002.tmp")
    (tmp_path / ".step-00000002.tmp" / "junk").write_text("left by a kill")
    assert [p.name for p in checkpoints.all()] == ["step-00000001"]
    path = checkpoints.save(state(2), tensors())
    assert not (path / "junk").exists()
    assert not (tmp_path / ".step-00000002.tmp").exists()


@pytest.mark.parametrize(("keep_last", "left"), [(1, [6]), (2, [5, 6]), (10, [1, 2, 3, 4, 5, 6])])
def test_the_last_are_kept(tmp_path, keep_last, left):
    checkpoints = saved(tmp_path, range(1, 7), keep_last)
    assert [read_state(p).step for p in checkpoints.all()] == left


def test_the_best_is_kept_until_another_is_better(tmp_path):
    checkpoints = Checkpoints(tmp_path, 1)
    kept = []
    for step, best in ((1, 1), (2, 1), (3, 1), (4, 4), (5, 4)):
        checkpoints.save(state(step, best={"run_step": best, "value": 0.0}), tensors())
        kept.append([read_state(p).step for p in checkpoints.all()])
    assert kept == [[1], [1, 2], [1, 3], [4], [4, 5]]


def edit(path, **changes):
    """Change state.json, but not its checksum."""
    file = path / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "flipped bit": lambda p: flip(p / "model.safetensors"),
    "truncated": lambda p: (p / "optimizer.safetensors").write_bytes((p / "optimizer.safetensors").read_bytes()[:-1]),
    "tensors gone": lambda p: (p / "model.safetensors").unlink(),
    "state cut": lambda p: (p / "state.json").write_text((p / "state.json").read_text()[:40]),
    "state of another shape": lambda p: (p / "state.json").write_text('{"format": 1, "files": {}, "colour": "red"}'),
    "another step": lambda p: edit(p, step=1),
    "another run step": lambda p: edit(p, run_step=1),
    "other results": lambda p: edit(p, results={"warmup": {}}),
    "a log of another length": lambda p: edit(p, log_bytes=1),
    "a file left out": lambda p: edit(p, files={}),
    "of another type, and of a version without checksum": lambda p: edit(p, format=1, sha256=None, step="2"),
    "a key too much": lambda p: edit(p, colour="red"),
    "nested deeply": lambda p: (p / "state.json").write_text(2000 * "["),
    "the state of another step": lambda p: shutil.copy(p.parent / "step-00000001" / "state.json", p),
    "the whole of another step": lambda p: shutil.copytree(p.parent / "step-00000001", p, dirs_exist_ok=True),
    "state empty": lambda p: (p / "state.json").write_text(""),
    "state no mapping": lambda p: (p / "state.json").write_text("[]"),
    "points outside": lambda p: (p / "state.json").write_text(
        (p / "state.json").read_text().replace("model.safetensors", "../step-00000001/model.safetensors")
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, damage):
    checkpoints, said = saved(tmp_path, [1, 2]), []
    damage(tmp_path / "step-00000002")
    found, path = checkpoints.newest(said.append)
    assert (found.step, path.name) == (1, "step-00000001")
    assert len(said) == 1
    assert "step-00000002 is damaged" in said[0] and "\n" not in said[0]
    with pytest.raises(UserError, match="damaged"):
        read_state(tmp_path / "step-00000002")
    checkpoints.set_aside(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged-step-00000002", "step-00000001"]


def test_one_without_its_state_is_passed_over(tmp_path):
    checkpoints = saved(tmp_path, [1, 2])
    (tmp_path / "step-00000002" / "state.json").unlink()
    assert checkpoints.newest(pytest.fail)[0].step == 1


def test_another_format_says_so(tmp_path):
    saved(tmp_path, [1])
    file = tmp_path / "step-00000001" / "state.json"
    file.write_text(file.read_text().replace('"format": 2', '"format": 99'))
    with pytest.raises(UserError, match="another version"):
        read_state(file.parent)
    with pytest.raises(UserError, match="another version"):  # not passed over: the run would begin anew
        Checkpoints(tmp_path, 1).newest(pytest.fail)


def test_a_checkpoint_of_version_0_1_is_read(tmp_path):
    """Its state.json had no checksum of itself, and lacked what came later."""
    saved(tmp_path, [1])
    file = tmp_path / "step-00000001" / "state.json"
    content = json.loads(file.read_text())
    for name in ("sha256", "optimizer", "steady"):
        del content[name]
    file.write_text(json.dumps(content | {"format": 1}))
    assert read_state(file.parent) == state(1)


def test_a_damaged_newer_one_never_displaces_what_the_run_writes(tmp_path):
    """The run went on from step 2 because step 9 is damaged; what it saves at 4 must survive."""
    checkpoints = saved(tmp_path, [2, 9], keep_last=1)
    shutil.rmtree(tmp_path / "step-00000009")
    saved(tmp_path, [2], keep_last=5)
    shutil.copytree(tmp_path / "step-00000002", tmp_path / "step-00000009")
    flip(tmp_path / "step-00000009" / "model.safetensors")
    assert checkpoints.newest(lambda _: None)[0].step == 2
    checkpoints.save(state(4), tensors())
    assert [p.name for p in checkpoints.all()] == ["step-00000004"]


def trained(fused, model=None):
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    groups = [{"params": list(model[0].parameters()), "weight_decay": 0.5}, {"params": list(model[1:].parameters())}]
    return model, torch.optim.AdamW(groups, lr=0.1, fused=fused)


def step(model, optimizer, seed):
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
    model(x).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("fused", [True, False])
def test_the_optimizer_goes_on_with_the_same_bits(tmp_path, fused):
    model, optimizer = trained(fused)
    for seed in range(3):
        step(model, optimizer, seed)
    path = Checkpoints(tmp_path, 1).save(
        state(3), {"model": model.state_dict(), "optimizer": optimizer_tensors(model, optimizer)}
    )
    other, restored = trained(fused)
    other.load_state_dict(read_tensors(path, "model"))
    restore_optimizer(other, restored, read_tensors(path, "optimizer"), {})
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert optimizer.state[p].keys() == restored.state[q].keys()
        for entry, value in optimizer.state[p].items():
            assert torch.equal(value, restored.state[q][entry])
            assert value.dtype == restored.state[q][entry].dtype
            assert value.device == restored.state[q][entry].device
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(other, restored, seed)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
