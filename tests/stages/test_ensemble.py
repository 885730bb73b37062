"""An ensemble of seeds gives each the weights that it would have had alone."""

import json
from dataclasses import replace

import pytest
import torch
from test_language import automaton, config

from vitwarm.errors import UserError
from vitwarm.run import build, run
from vitwarm.run_ensemble import run_ensemble
from vitwarm.stages.ensemble import Ensemble

SEEDS = (3, 4, 9)


def tiny(tmp_path=None, objective="next_token", clip=None, tied=False, **more):
    rule = {"rule": automaton(), "length": 6} if objective == "next_state" else {}
    # A key's bias has no gradient but rounding. With a small epsilon AdamW makes steps of full length of that.
    optim = {"clip_grad": clip, "lr": 1e-2, "eps": 1e-3}
    warmup = {"budget": "20 steps", "eval_every": 10, **optim}
    c = config(objective=objective, tied=tied, warmup=warmup, budget="20 steps", **rule, **more)
    c.train = replace(c.train, **optim)
    c.run.dir = str(tmp_path) if tmp_path else None
    return c


@pytest.mark.parametrize(
    "settings",
    [{}, {"clip": 0.05}, {"tied": True}, {"objective": "next_state"}, {"task": "haystack", "embeddings": "fresh"}],
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
            assert {k: ours[k] for k in ("steps", "samples", "tokens", "flops")} == {
                k: theirs[k] for k in ("steps", "samples", "tokens", "flops")
            }
            assert ours["metrics"]["loss"] == pytest.approx(theirs["metrics"]["loss"], rel=1e-5)
        assert (result["recipe_hash"], result["start"]) == (alone["recipe_hash"], alone["start"])
        folder = tmp_path / "together" / f"tiny-seed{seed}"
        assert json.loads((folder / "result.json").read_text()) == result
        weights = [load(f / "export") for f in (folder, tmp_path / f"alone{seed}")]
        fresh = build(c, 1, True).fresh.state_dict()["blocks.0.attn.qkv.weight"].T
        for name, tensor in weights[1].items():
            torch.testing.assert_close(weights[0][name], tensor, rtol=1e-4, atol=1e-5)
        moved.append((weights[1]["transformer.h.0.attn.c_attn.weight"] - fresh).abs().max())
    assert min(moved) > 0.01  # the equalities are not those of weights that stand still


def load(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_seeds_do_not_touch_each_other():
    """Another companion changes nothing."""
    found = []
    for seeds in ((0, 1), (0, 2)):
        stages = [build(replace(tiny(), seed=s), 1, True).main for s in seeds]
        ensemble = Ensemble(stages, torch.device("cpu"))
        ensemble.train(lambda step, metrics: None)
        found.append(stages[0].model.state_dict())
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])


def test_frozen_groups_stand_still_and_a_loss_of_many_chunks_is_one_piece():
    configs = [replace(tiny(clip=0.05), seed=s) for s in (0, 1)]
    for c in configs:
        c.train.freeze = ["attention"]
    stages = [build(c, 1, True).main for c in configs]
    for stage in stages:
        stage.model.max_logits = 8
    before = {n: t.clone() for n, t in stages[1].model.state_dict().items()}
    Ensemble(stages, torch.device("cpu")).train(lambda step, metrics: None)
    moved = {n for n, t in stages[1].model.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == {n for n in before if ".attn." not in n}


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
    c.run.tensorboard = True
    with pytest.raises(UserError, match="works without run.tensorboard"):
        run_ensemble(c, [0, 1])
    c = tiny(tmp_path)
    c.resume_from = "elsewhere"
    with pytest.raises(UserError, match="leave out resume_from"):
        run_ensemble(c, [0, 1])
    run_ensemble(tiny(tmp_path), [0])
    with pytest.raises(UserError, match="holds a finished run"):
        run_ensemble(tiny(tmp_path), [0, 1])
