"""A whole study: real launches through submitit, skipped when done, gone on with, marked where they crash."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from harness import write_recipe

from vitwarm.budget.launch import Launch
from vitwarm.cli import call
from vitwarm.errors import Interrupted, UserError
from vitwarm.signals import stop_signals

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def words(tmp_path, monkeypatch):
    """Words of `vitwarm budget` for a plan of a full and a half run of each of two arms."""
    recipe = write_recipe(tmp_path, images={"epochs": 0.18}, train={"lr_warmup": "10%"})
    arms = {"default": {"recipe": str(recipe), "set": {"warmup.budget": "0"}}, "warmed": {"recipe": str(recipe)}}
    plan = {"arms": arms, "budgets": ["50%", "100%"], "seeds": [0]}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(plan))

    monkeypatch.chdir(ROOT)
    for name, value in {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONUNBUFFERED": "1"}.items():
        monkeypatch.setenv(name, value)
    return [f"plan={tmp_path / 'small.yaml'}", f"out={tmp_path / 'out'}"]


@pytest.fixture
def study(words, capsys):
    """Carries the study out within this process, which spares its start; the cells are processes of their own."""

    def study(*more: str) -> str:
        call("budget", [*words, *more])
        return capsys.readouterr().out

    return study


@pytest.fixture
def alone(monkeypatch):
    """Cells start without `accelerate launch`, which takes seconds each time and is not what the test is about."""
    monkeypatch.setattr("vitwarm.budget.launch.Launch", lambda *given: replace(Launch(*given), accelerate=None))


def test_a_study_runs_stops_goes_on_and_reports(study, words, tmp_path):
    command = [sys.executable, "-m", "vitwarm", "budget", *words, "jobs=2"]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    cells = tmp_path / "out/cells"
    deadline = time.monotonic() + 120
    while not list(cells.glob("*/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 75, said

    assert "4 done (#)" in study("jobs=2")
    results = {f.parent.name: json.loads(f.read_text()) for f in cells.glob("*/result.json")}
    assert len(results) == 4
    warmups = {name: r["stages"].get("warmup", {}).get("steps") for name, r in results.items()}
    assert sorted(warmups.values(), key=str) == [10, 10, None, None]  # the half run's is the full one's
    assert {r["stages"]["images"]["steps"] for r in results.values()} == {9, 5}
    page = (tmp_path / "out/report.html").read_text()
    assert "1 seed: too few to decide anything" in page

    assert "start " not in study()  # nothing is left to do


def test_a_cell_that_crashes_is_marked_and_the_others_go_on(study, alone, tmp_path, capsys):
    with pytest.raises(UserError, match="2 runs failed, first .*not finite.*; the same command tries again"):
        study("budgets=100%", "jobs=2", "train.lr=1e30", "train.start_lr=1e30")
    assert "2 crashed (x)" in capsys.readouterr().out
    failures = json.loads((tmp_path / "out/failures.json").read_text())
    assert all("not finite" in why for why in failures.values())
    assert "crashed" in (tmp_path / "out/report.md").read_text()


def test_the_cost_is_printed_before_anything_runs(study, alone, tmp_path):
    said = study("--dry-run")
    assert "4 waiting (.)" in said and "device-hours at the measured rate" in said
    assert not (tmp_path / "out/cells").exists()
    rates = json.loads((tmp_path / "out/rates.json").read_text())
    assert sorted(map(sorted, rates.values())) == [["images"], ["images", "warmup"]]
    said = study("--dry-run")  # is known by now
    assert "measuring" not in said and "at the measured rate" in said


def test_a_signal_while_the_speed_is_measured_stops_the_command(study, monkeypatch):
    monkeypatch.setattr("vitwarm.study.train_command", lambda *given: ["sh", "-c", "kill -TERM $PPID"])
    with stop_signals(), pytest.raises(Interrupted):
        study("--dry-run")


SBATCH = """#!/bin/bash
number=$$; [ -s "$1" ] || exit 1
grep '^#SBATCH' "$1" >> "$(dirname "$0")/asked"
export SLURM_JOB_ID=$number SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=1 SLURM_NNODES=1 SLURM_NODEID=0
SLURM_JOB_NODELIST=localhost bash "$1" > /dev/null 2>&1 &
echo "Submitted batch job $number"
"""
SRUN = """#!/bin/bash
while [ "${1#--}" != "$1" ]; do
    case $1 in --output) out=$2; shift;; --error) err=$2; shift;; esac
    shift
done
fill() { local name=${1//%j/$SLURM_JOB_ID}; echo "${name//%t/0}"; }
exec "$@" > "$(fill "$out")" 2> "$(fill "$err")"
"""
SACCT = "#!/bin/bash\necho 'JobID|State|NodeList'\n"


def test_cells_are_submitted_to_slurm(study, alone, tmp_path, monkeypatch):
    """With stand-ins for Slurm's commands: a job that is carried out at once, on this machine."""
    (tmp_path / "bin").mkdir()
    for name, script in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT)):
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    slurm = ["executor=slurm", "submit.slurm_partition=gpu", "submit.timeout_min=30", "submit.gpus_per_node=8"]
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert "2 done (#)" in study("budgets=100%", *slurm)
    asked = (tmp_path / "bin/asked").read_text()
    assert all(flag in asked for flag in ("--partition=gpu", "--time=30", "--gpus-per-node=8"))


def test_a_bad_plan_ends_with_one_line(study):
    with pytest.raises(UserError) as refused:
        study("seeds=[]")
    assert "\n" not in str(refused.value)
