"""Seeds on a CPU: a process each, as many at once as there are cores."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from vitwarm import seed_runs
from vitwarm.errors import Interrupted, UserError
from vitwarm.recipe import load_recipe
from vitwarm.run import run
from vitwarm.run_folder import run_folder
from vitwarm.seed_runs import run_seeds

RECIPE, SMALL = "haystack_default", {
    "model.decoder.size": "1_1_8", "algorithmic.size": "3", "algorithmic.budget": "3 steps", "train.global_batch": "4",
    "train.lr_warmup": "0", "algorithmic.val_rows": "8",
}  # fmt: skip


def recipe(tmp_path):
    return load_recipe([f"recipe={RECIPE}", *(f"{k}={v}" for k, v in (SMALL | {"run.dir": tmp_path}).items())])


def test_a_seed_is_what_it_is_alone(tmp_path):
    """A real process."""
    config = recipe(tmp_path / "all")
    alone = run(replace(config, seed=4, run=replace(config.run, dir=str(tmp_path / "alone"))))
    (result,) = run_seeds(config, RECIPE, SMALL | {"run.dir": str(tmp_path / "all")}, [4], [])
    assert (result["seed"], result["recipe_hash"]) == (4, alone["recipe_hash"])
    assert result["metrics"] == alone["metrics"]
    folder = tmp_path / f"all/{RECIPE}-seed4"
    assert json.loads((folder / "result.json").read_text()) == result
    assert str(folder) in (tmp_path / f"all/{RECIPE}-seed4.log").read_text()


class Fake:
    """Processes that only note when they begin and end."""

    def __init__(self, monkeypatch, tmp_path, script: str):
        self.most, self.running, self.tmp_path, self.script = 0, [], tmp_path, script
        monkeypatch.setattr(seed_runs, "_start", self.start)
        monkeypatch.setattr(seed_runs, "cores", lambda: 2)

    def start(self, member, recipe, overrides, threads):
        folder = run_folder(member)
        folder.mkdir(parents=True, exist_ok=True)
        log = folder.with_name(f"{folder.name}.log")
        with open(log, "ab") as file:
            words = [sys.executable, "-S", "-c", self.script, str(folder), str(member.seed)]
            process = subprocess.Popen(words, stdout=file, stderr=file)
        self.running = [p for p in self.running if p.poll() is None] + [process]
        self.most = max(self.most, len(self.running))
        return process


RESULT = """
import json, sys, time
time.sleep(0.05)
with open(sys.argv[1] + "/result.json", "w") as f:
    json.dump(dict(recipe="r", recipe_hash="h", seed=int(sys.argv[2]), start="s", metrics={}, stages={}), f)
"""


def test_as_many_at_once_as_there_are_cores(tmp_path, monkeypatch):
    fake = Fake(monkeypatch, tmp_path, RESULT)
    found = run_seeds(recipe(tmp_path), RECIPE, {}, range(5), [])
    assert [result["seed"] for result in found] == list(range(5)) and fake.most == 2


def test_a_seed_that_fails_ends_the_others_and_says_why(tmp_path, monkeypatch):
    script = (
        "import sys, time\nif sys.argv[2] == '1':\n  print('vitwarm: error: too cold'); sys.exit(2)\ntime.sleep(60)"
    )
    fake = Fake(monkeypatch, tmp_path, script)
    with pytest.raises(UserError, match=r"^seed 1: too cold$"):
        run_seeds(recipe(tmp_path), RECIPE, {}, range(4), [])
    assert all(process.poll() is not None for process in fake.running) and not list(tmp_path.glob("*seed3*"))


def test_a_seed_that_was_killed_is_called_killed(tmp_path, monkeypatch):
    Fake(
        monkeypatch, tmp_path, "import os, signal\nprint('step 500', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    with pytest.raises(UserError, match=r"^seed 0: killed by SIGKILL$"):
        run_seeds(recipe(tmp_path), RECIPE, {}, [0], [])


def test_a_signal_reaches_every_seed(tmp_path, monkeypatch):
    class Later(list):
        asked = 0

        def __bool__(self):
            self.asked += 1
            return self.asked > 6

    fake = Fake(monkeypatch, tmp_path, "import time; time.sleep(60)")
    with pytest.raises(Interrupted):
        run_seeds(recipe(tmp_path), RECIPE, {}, range(4), Later())
    assert all(process.poll() is not None for process in fake.running)


def test_the_number_of_the_seed_is_in_its_sources(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda words, **more: started.append((words, more)))
    sources = {"attention": "a{seed}", "mlp norm": "b{seed}"}
    config = recipe(tmp_path)
    config = replace(config, transfer=replace(config.transfer, sources=sources))
    member = seed_runs.members_of(config, [7])[0]
    seed_runs._start(member, RECIPE, SMALL | {"transfer.sources": "as written"}, 3)
    ((words, more),) = started
    again = load_recipe(words[4:])
    assert words[1:4] == ["-m", "vitwarm", "train"] and more["env"]["VITWARM_SEED_OF"]
    assert (again.seed, again.transfer.sources) == (7, {"attention": "a7", "mlp norm": "b7"})
    assert run_folder(again) == tmp_path / f"{RECIPE}-seed7"
