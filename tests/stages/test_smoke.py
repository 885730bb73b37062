"""A smoke run is the recipe in small: every stage and file of it, in a folder that no real run takes for its own."""

import json
import math
import re
from dataclasses import replace

import pytest
import timm
import torch
from test_ensemble import tiny
from test_glue import config as glue_config
from test_glue import folder as folder
from test_text import TEXTS, VAL, problems, written
from test_text import config as text_config

from vitwarm.assembly import assemble
from vitwarm.errors import UserError
from vitwarm.recipe import load_recipe, recipe_hash
from vitwarm.run import run, run_ensemble, train

SMALL = {
    "model.name": "test_vit", "model.args": {"img_size": 8, "patch_size": 4}, "images.resident": False,
    "warmup.budget": "40 steps", "warmup.rule": {"k": 2}, "warmup.lr_warmup": "50%", "warmup.eval_every": 1,
    "images.epochs": 1, "train.global_batch": 12, "train.lr_warmup": "25%", "run.workers": 0, "run.keep_last": 9,
}  # fmt: skip


def log(folder, event, stage):
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [e for e in entries if e["event"] == event and e["stage"] == stage]


def test_images_in_small_and_always_anew(tmp_path, capsys):
    folder, real = tmp_path / "run-smoke", {**SMALL, "run.dir": str(tmp_path / "run")}
    results = []
    for exact in (False, True):
        here = {"run.smoke": True, "run.push": "me/never", "run.deterministic": exact}
        results.append(train("digits_proc", **real, **here))
        assert not torch.are_deterministic_algorithms_enabled()  # the caller's own setting
        for stage in ("warmup", "images"):
            assert results[-1]["stages"][stage]["steps"] == 20
            assert [e["step"] for e in log(folder, "eval", stage)] == [10, 20]
            first = log(folder, "train", stage)[0]  # the rate rises for 10 steps of 20, and for 5
            risen = {"warmup": 4 / 10 * 1e-3, "images": 4 / 5 * 2e-3}[stage]
            assert (first["step"], first["lr"]) == (5, pytest.approx(risen, rel=1e-3))
        assert {p.name for p in (folder / "checkpoints").iterdir()} >= {"step-00000020", "step-00000040"}
        assert timm.create_model(f"local-dir:{folder / 'export'}", pretrained=True).num_classes == 10
        assert results[-1]["metrics"]["count"] == 64
        shown = capsys.readouterr().out
        assert "a smoke run: 20 steps a stage, 64 samples an evaluation, or fewer" in shown
        assert re.search(r"20 steps of 12 samples of .*; 0\.1\d+ epochs, 10 classes", shown)
        assert "by a smoke run" in (folder / "export/README.md").read_text()
        (folder / "thesis.tex").touch()
        (folder / "checkpoints" / "step-00000040" / "state.json").write_text("damaged")
    assert results[0]["metrics"] == results[1]["metrics"]
    assert (folder / "thesis.tex").exists()  # no file of a run
    with pytest.raises(UserError, match="no such file"):
        train("digits_proc", **real, **{"run.smoke": True, "images.train": str(tmp_path / "none.tar")})
    assert (folder / "result.json").exists()  # a run that cannot begin takes nothing away
    config = load_recipe(["recipe=digits_proc"])
    assert results[0]["recipe_hash"].endswith("-smoke") and "-" not in recipe_hash(config)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run-smoke"]
    with pytest.raises(UserError, match="run-smoke holds a run of another recipe: run.smoke was true, now false;"):
        train("digits_proc", **SMALL | {"run.dir": str(folder)})
    with pytest.raises(UserError, match="belongs to another recipe .* in which run.smoke was true, now false;"):
        train("digits_proc", **real, resume_from=str(folder))
    with pytest.raises(UserError, match="run.smoke begins anew each time; leave resume_from out"):
        train("digits_proc", **real, resume_from=str(folder), run={"smoke": True})


def test_a_folder_that_is_no_smoke_run_is_not_removed(tmp_path):
    (tmp_path / "run-smoke").mkdir()
    (tmp_path / "run-smoke" / "thesis.tex").touch()
    with pytest.raises(UserError, match="run-smoke exists and is not a run folder"):
        train("digits_proc", **SMALL, **{"run.dir": str(tmp_path / "run"), "run.smoke": True})
    assert (tmp_path / "run-smoke" / "thesis.tex").is_file()


@pytest.mark.parametrize("task", ["language", "mathematics", "rte"])
def test_stages_on_text_in_small(tmp_path, monkeypatch, folder, task):
    monkeypatch.setenv("VITWARM_CACHE", str(tmp_path / "cache"))
    if task == "rte":
        c = glue_config(folder(task), task=task, budget="90 steps")
    elif task == "mathematics":
        data = {"train": problems(tmp_path / "m", 50), "tokenizer": "chars"}
        c = text_config(task=task, budget="90 steps", **data)
    else:
        data = {"train": written(tmp_path / "a.jsonl", TEXTS * 40), "val": written(tmp_path / "b.jsonl", VAL * 60)}
        c = text_config(budget="90 steps", **data)
    c.run = replace(c.run, dir=str(tmp_path / "run"), smoke=True)
    result = run(c)
    assert result["stages"]["text"]["steps"] == 20 and all(map(math.isfinite, result["metrics"].values()))
    assert (tmp_path / "run-smoke/export/config.json").is_file()


def test_seeds_in_small(tmp_path):
    c = tiny(tmp_path)
    c.warmup.budget, c.algorithmic.budget, c.run.smoke = "50 steps", "60 steps", True
    for result in run_ensemble(c, [0, 1]):
        assert [stage["steps"] for stage in result["stages"].values()] == [20, 20]
        assert (tmp_path / f"tiny-seed{result['seed']}-smoke/export/model.safetensors").is_file()


def test_a_schedule_shrinks_with_its_stage(tmp_path):
    c = tiny(tmp_path)
    c.algorithmic.budget, c.train.schedule, c.train.lr_warmup, c.train.cooldown = "1000 steps", "wsd", "10%", "90%"
    main = assemble(c, 1).main
    main.shorten(20, 30)
    assert (main.steps, main.schedule_lengths, main.eval_every, main.val_samples) == (20, (2, 18), 10, 30)
    main.shorten(50, 100)
    assert (main.steps, main.schedule_lengths, main.eval_every, main.val_samples) == (20, (2, 18), 10, 30)
