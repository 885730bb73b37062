"""The two examples of docs/running.md that start a run again, line by line as they stand on the page."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import ROOT, free_port, log, write_recipe

STEPS = 100  # of the warm-up, so that a signal after its third finds it at work

# A task for each of SLURM_NTASKS; the exit code is the highest of theirs, as srun's.
SRUN = """#!/bin/bash
for task in $(seq 0 $((SLURM_NTASKS - 1))); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    echo $! >> "$SPOOL/tasks"
done
most=0
for pid in $(jobs -p); do
    wait "$pid"
    code=$?
    if [ $code -gt $most ]; then most=$code; fi
done
exit $most
"""
SCONTROL = """#!/bin/bash
if [ "$1 $2" = "show hostnames" ]; then echo 127.0.0.1; fi
if [ "$1" = requeue ]; then echo "$2" >> "$SPOOL/requeued"; fi
"""


def example(begins: str, **changes: str) -> str:
    """The code on the page that begins so, with other words in place of some of its own."""
    page = (ROOT / "docs/running.md").read_text()
    (text,) = (block for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if block.startswith(begins))
    for name, value in changes.items():
        text, count = re.subn(rf"\b{name.replace('__', '.')}=\S+", f"{name.replace('__', '.')}={value}", text)
        assert count == 1, name
    return text


@pytest.fixture
def environment(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    found = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    return found | {"PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}", "SPOOL": str(tmp_path)}


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path, warmup={"budget": f"{STEPS} steps", "eval_every": 1000})


def wait_for(process, condition) -> None:
    end = time.monotonic() + 200
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.005)


def assert_each_step_once(run) -> None:
    assert (run / "result.json").is_file()
    assert [e["step"] for e in log(run, stage="warmup")] == list(range(1, STEPS + 1))
    steps = [e["step"] for e in log(run, stage="images")]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > 5


def test_a_slurm_job_is_queued_again_until_it_is_finished(tmp_path, environment, recipe):
    run, spool = tmp_path / "run", tmp_path
    environment |= {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[1-2]"}
    environment |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}

    def job(**changes: str) -> subprocess.Popen:
        changes |= {"run__dir": str(run), "MASTER_PORT": str(free_port()), "images__train": "digits"}
        script = example("#!/bin/bash\n#SBATCH", images__val="digits'", **changes)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(["bash", "-c", script], cwd=ROOT, env=environment, **pipes)

    first = job(recipe=str(recipe))
    wait_for(first, lambda: len(log(run)) >= 3)
    for pid in map(int, (spool / "tasks").read_text().split()):  # the time is nearly up
        os.kill(pid, signal.SIGUSR1)
    said = first.communicate(timeout=200)
    assert first.returncode == 75, said
    assert (spool / "requeued").read_text() == "4711\n" and not (run / "result.json").exists()
    assert 3 <= len(log(run)) < STEPS

    second = job(recipe=str(recipe))
    said = second.communicate(timeout=200)
    assert second.returncode == 0, said
    assert_each_step_once(run)

    wrong = job(recipe="nosuch")
    assert "no recipe" in wrong.communicate(timeout=200)[1] and wrong.returncode == 2
    assert (spool / "requeued").read_text() == "4711\n", "neither of the two was queued again"


def test_torchrun_starts_anew_when_a_process_dies(tmp_path, environment, recipe):
    run = tmp_path / "run"
    command = example("torchrun", recipe=str(recipe), run__dir=str(run)).replace("node 8", "node 2")
    torchrun = subprocess.Popen(
        ["bash", "-c", f"exec {command}"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    wait_for(torchrun, lambda: len(log(run)) >= 7)  # a checkpoint of step 4 is there
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text(encoding="utf-8").split()
    os.kill(int(children[-1]), signal.SIGKILL)
    assert torchrun.wait(200) == 0, torchrun.stderr.read()
    assert_each_step_once(run)
