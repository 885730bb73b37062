"""An ensemble of seeds gives each the weights that it would have had alone."""

import json
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from test_language import automaton, config

from vitwarm.assembly import assemble
from vitwarm.errors import Interrupted, UserError
from vitwarm.exports import read_gpt2
from vitwarm.run import run, run_ensemble

SEEDS = (3, 4, 9)


def tiny(tmp_path=None, objective="next_token", clip=None, tied=False, optimizer="adamw", **more):
    rule = {"rule": automaton(), "length": 6} if objective == "next_state" else {}
    # A key's bias has no gradient but rounding. With a small epsilon AdamW makes steps of full length of that.
    optim = {"clip_grad": clip, "lr": 1e-2, "eps": 1e-3, "optimizer": optimizer}
    warmup = {"budget": "20 steps", "eval_every": 10, **optim}
    c = config(objective=objective, tied=tied, warmup=warmup, budget="20 steps", **rule, **more)
    c.train = replace(c.train, **optim)
    c.run.dir = str(tmp_path) if tmp_path else None
    return c


@pytest.mark.parametrize("rule", ["set", "eca"])
def test_a_run_is_the_same_whatever_its_caller_has_set_in_torch(tmp_path, rule):
    more = {"objective": "next_state"} if rule == "eca" else {}
    plain = run(tiny(tmp_path / "plain", **more))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), torch.autocast("cpu"):
            other = run(tiny(tmp_path / "other", **more))
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.rand(3), expected)  # the caller's random numbers go on as they would have
    assert other["metrics"] == plain["metrics"]
    ours, theirs = (load(tmp_path / name / "export") for name in ("other", "plain"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"clip": 0.05},
        {"tied": True},
        {"objective": "next_state"},
        {"optimizer": "nadamw"},
        {"task": "haystack", "embeddings": "fresh"},
    ],
    ids=str,
)
def test_each_seed_ends_as_it_would_have_alone(tmp_path, settings):
    """20 steps of warm-up and 20 of the task, against the loop that trains one seed."""
    together = run_ensemble(tiny(tmp_path / "together", **settings), SEEDS)
    moved = []
    for seed, result in zip(SEEDS, together, strict=True):
        c = replace(tiny(tmp_path / f"alone{seed}", **settings), seed=seed)
        alone = run(c)
        for stage in ("warmup", "algorithmic"):
            ours, theirs = (r["stages"][stage] for r in (result, alone))
            assert all(ours[k] == theirs[k] for k in ("steps", "samples", "tokens"))
            assert 0.98 < ours["flops"] / theirs["flops"] < 1.5  # stacked seeds leave no places out
            assert ours["metrics"]["loss"] == pytest.approx(theirs["metrics"]["loss"], rel=1e-5)
        assert (result["recipe_hash"], result["start"]) == (alone["recipe_hash"], alone["start"])
        folder = tmp_path / "together" / f"tiny-seed{seed}"
        assert json.loads((folder / "result.json").read_text()) == result
        weights = [load(f / "export") for f in (folder, tmp_path / f"alone{seed}")]
        fresh = assemble(c, 1).model.state_dict()["blocks.0.attn.qkv.weight"].T
        for name, tensor in weights[1].items():
            torch.testing.assert_close(weights[0][name], tensor, rtol=1e-4, atol=1e-5)
        moved.append((weights[1]["transformer.h.0.attn.c_attn.weight"] - fresh).abs().max())
    assert min(moved) > 0.01  # the equalities are not those of weights that stand still


def load(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("warmup", ["0", "20 steps"])
def test_seeds_do_not_touch_each_other(tmp_path, warmup):
    """Another companion changes nothing, but rounding where its sequences have another number of predictions."""
    found = []
    for seeds in ((0, 1), (0, 2)):
        c = tiny(tmp_path / f"{seeds}")
        c.warmup.budget = warmup
        run_ensemble(c, seeds)
        found.append(load(tmp_path / f"{seeds}/tiny-seed0/export"))
    exact = {"rtol": 0, "atol": 0} if warmup == "0" else {"rtol": 1e-6, "atol": 1e-7}  # sums over as many, or not
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, **exact)


def test_frozen_groups_stand_still_and_a_loss_of_many_chunks_is_one_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("vitwarm.trunk.decoder.MAX_LOGITS", 8)
    c = tiny(tmp_path, clip=0.05)
    c.warmup.budget, c.train.freeze = "0", ["attention"]
    run_ensemble(c, [0, 1])
    trained = read_gpt2(tmp_path / "tiny-seed1/export").state_dict()
    before = assemble(replace(c, seed=1), 1).model.state_dict()
    moved = {n for n, t in trained.items() if not torch.equal(t, before[n])}
    assert moved == {n for n in before if ".attn." not in n}


def test_a_killed_ensemble_resumes_to_the_same_bits(tmp_path):
    """Stopped in its warm-up and in its main stage, by a signal, against one that nothing disturbs."""
    run_ensemble(tiny(tmp_path / "whole"), [0, 1])
    c = tiny(tmp_path / "cut")
    c.run.log_every = 1

    class At(list):
        """A list of signals into which one falls at a step of the run."""

        def __bool__(self):
            entries = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
            return any(entry.get("run_step", 0) >= self[0] for entry in entries)

    log = tmp_path / "cut/tiny-ensemble0,1/log.jsonl"
    for step in (7, 31):
        stop = At([step])
        with pytest.raises(Interrupted):
            run_ensemble(c, [0, 1], stop)
        assert not (tmp_path / "cut/tiny-seed0/result.json").exists()
    results = run_ensemble(c, [0, 1])
    for seed, result in enumerate(results):
        own, other = tmp_path / f"cut/tiny-seed{seed}", tmp_path / f"whole/tiny-seed{seed}"
        for folder in ("warmup", "export"):
            assert all(torch.equal(t, load(other / folder)[n]) for n, t in load(own / folder).items())
        assert (own / "log.jsonl").read_text() == (other / "log.jsonl").read_text()
        assert result["metrics"] == json.loads((other / "result.json").read_text())["metrics"]
    assert run_ensemble(c, [0, 1]) == results  # finished: nothing is trained again
    shutil.rmtree(tmp_path / "cut/tiny-seed1")
    with pytest.raises(UserError, match="tiny-seed1 is gone; remove .*tiny-ensemble0,1 to start over"):
        run_ensemble(c, [0, 1])


def test_a_seed_that_was_begun_alone_is_not_trained_anew(tmp_path):
    c = tiny(tmp_path)
    alone = replace(c, seed=1, run=replace(c.run, dir=str(tmp_path / "tiny-seed1"), checkpoint_every=1))
    log = tmp_path / "tiny-seed1/log.jsonl"

    class Soon(list):
        def __bool__(self):
            return any((tmp_path / "tiny-seed1/checkpoints").glob("step-*"))

    with pytest.raises(Interrupted):
        run(alone, Soon([signal.SIGTERM]))
    before = log.read_bytes()
    with pytest.raises(UserError, match="tiny-seed1 holds a run that goes on alone; finish it with vitwarm train"):
        run_ensemble(c, [0, 1])
    assert log.read_bytes() == before and not (tmp_path / "tiny-seed0").exists()


@pytest.mark.parametrize("how", ["init_from", "sources"])
def test_each_seed_starts_from_the_source_that_bears_its_number(tmp_path, how):
    warmed = tiny(tmp_path / "warmed", task=None)
    run_ensemble(warmed, [0, 1])
    c = tiny(tmp_path / "task", embeddings="fresh")
    source = f"{tmp_path}/warmed/tiny-seed{{seed}}"
    if how == "init_from":
        c.init_from = source
    else:
        c.transfer.sources = {"attention": source, "mlp norm": source}
    for seed, result in enumerate(run_ensemble(c, [0, 1])):
        alone = replace(tiny(tmp_path / f"alone{seed}", embeddings="fresh"), seed=seed)
        alone.init_from = f"{tmp_path}/warmed/tiny-seed{seed}"
        assert result["metrics"]["loss"] == pytest.approx(run(alone)["metrics"]["loss"], rel=1e-5)
        assert f"tiny-seed{seed}" in result["start"]


def test_the_log_holds_each_seeds_curve(tmp_path):
    run_ensemble(tiny(tmp_path), [0, 1])
    entries = [json.loads(line) for line in (tmp_path / "tiny-seed1/log.jsonl").read_text().splitlines()]
    assert [(e["stage"], e["step"]) for e in entries] == [("warmup", 10), ("warmup", 20), ("algorithmic", 20)]


def test_what_an_ensemble_cannot_do(tmp_path):
    for change in ({"ema": 0.9}, {"precision": "bf16"}, {"compile": True}):
        c = tiny(tmp_path)
        c.train = replace(c.train, **change)
        c.warmup.budget = "0"
        with pytest.raises(UserError, match=f"works without {next(iter(change))}"):
            run_ensemble(c, [0, 1])
    with pytest.raises(UserError, match="works without optimizer=lamb"):
        run_ensemble(tiny(tmp_path, optimizer="lamb"), [0, 1])
    c = tiny(tmp_path)
    c.model.decoder.dropout = 0.1
    with pytest.raises(UserError, match="works without dropout"):
        run_ensemble(c, [0, 1])
    c = tiny(tmp_path)
    c.warmup.rule = {"name": "curriculum", "rule": c.warmup.rule}
    with pytest.raises(UserError, match="works without a curriculum"):
        run_ensemble(c, [0, 1])
    c = tiny(tmp_path)
    c.model.grad_checkpointing = True
    with pytest.raises(UserError, match="works without grad_checkpointing"):
        run_ensemble(c, [0, 1])
    c = tiny(tmp_path)
    c.run.push = "somebody/something"
    with pytest.raises(UserError, match="works without run.push"):
        run_ensemble(c, [0, 1])
    c = tiny(tmp_path)
    c.run.device_batch = 2
    with pytest.raises(UserError, match="takes its batch at once"):
        run_ensemble(c, [0, 1])
    c = tiny(tmp_path)
    c.resume_from = "elsewhere"
    with pytest.raises(UserError, match="works without resume_from"):
        run_ensemble(c, [0, 1])
    run_ensemble(tiny(tmp_path), [0])
    with pytest.raises(UserError, match="holds a finished run"):
        run_ensemble(tiny(tmp_path), [0, 1])
