"""Runs cells: a process or an `accelerate launch` each, through submitit, on this machine or on Slurm."""

import contextlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitwarm.budget.cells import BEGUN, DONE, RUNNING, WAITING, Cells, Folders
from vitwarm.errors import Interrupted, UserError
from vitwarm.files import write_text

POLL = 2.0  # seconds
_GIVE_UP = 3  # failures in a row
_LONG = 60 * 24 * 365  # minutes: submitit's local executor must not end a run


@dataclass(frozen=True)
class Launch:
    """Where and how cells run.

    Attributes:
        executor: `local` or `slurm`.
        jobs: cells at once.
        accelerate: further arguments of `accelerate launch`; None: each cell is one process, without it.
        submit: parameters of submitit (`slurm_partition`, `gpus_per_node`, `timeout_min`, ...).
    """

    executor: str = "local"
    jobs: int = 1
    accelerate: str | None = ""
    submit: dict[str, Any] = field(default_factory=dict)


def train_command(arguments: Sequence[str], folder: Path, launch: Launch) -> list[str]:
    """The command of a run; the same command by hand resumes it."""
    words = [sys.executable]
    if launch.accelerate is not None:
        words += ["-m", "accelerate.commands.launch", "--quiet", *shlex.split(launch.accelerate)]
    return [*words, "-m", "vitwarm", "train", *arguments, f"run.dir={folder}"]


def _on_devices(words: list[str], launch: Launch, devices: str | None) -> list[str]:
    """A command that sees these GPUs (None: those that this process sees) and its share of this machine's cores."""
    if launch.executor == "slurm":
        return words
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") if devices is None else devices
    # submitit's local executor hides all GPUs from its jobs
    start = ["-u", "CUDA_VISIBLE_DEVICES"] if visible is None else [f"CUDA_VISIBLE_DEVICES={visible}"]
    if launch.jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
        start.append(f"OMP_NUM_THREADS={max(1, len(os.sched_getaffinity(0)) // launch.jobs)}")
    return ["env", *start, *words]


def carry_out(grid: Cells, folders: Folders, launch: Launch, out: Path, stop: list[int]) -> None:
    """Run every cell that is not finished; prints the table of progress as it changes.

    A new start tries again what crashed, after all others. When cell after cell crashes, no more are started.

    Args:
        grid: the cells.
        folders: their state.
        launch: where and how cells run.
        out: folder of the study; submitit keeps its files in out/jobs.
        stop: list that a signal handler fills; running cells then save a checkpoint and end.

    Raises:
        UserError: submitit is missing or refuses its parameters.
        Interrupted: a signal came.
    """
    executor = _executor(launch, out)
    jobs: dict[str, Any] = {}
    slots: dict[str, int] = {}
    tried: set[str] = set()
    failures, in_a_row, shown = folders.failures(), 0, ""
    order = sorted(grid.cells, key=lambda cell: cell.hash in failures)
    for cell in grid.cells:
        failures.pop(cell.hash, None)
    _write(folders.failures_file, failures)
    limit = len(grid.cells) if launch.executor == "slurm" else launch.jobs
    while True:
        for hash_, job in list(jobs.items()):
            if job.done():
                del jobs[hash_], slots[hash_]
                state = folders.statuses(grid)[hash_].state
                if state == DONE:
                    in_a_row = 0
                elif state == RUNNING:  # of another start, which was first
                    tried.discard(hash_)
                else:
                    failures[hash_] = _last_words(job)
                    _write(folders.failures_file, failures)
                    in_a_row += 1
        statuses = folders.statuses(grid)
        table = grid.progress(statuses)
        if table != shown:
            shown = table
            print(f"\n{table}", flush=True)
        if stop:
            _end(jobs, launch)
            raise Interrupted("stopped by a signal")
        if in_a_row >= _GIVE_UP:
            print(f"{in_a_row} cells in a row crashed: no more are started", flush=True)
            return _end(jobs, launch)
        left = [hash_ for hash_, status in statuses.items() if status.state == RUNNING and hash_ not in jobs]
        for cell in order:
            if len(jobs) + len(left) >= limit:  # runs that a killed start has left behind go on
                break
            if cell.hash not in tried and statuses[cell.hash].state in (WAITING, BEGUN) and cell.ready():
                tried.add(cell.hash)
                slots[cell.hash] = min(set(range(limit)) - set(slots.values()))
                words = train_command(cell.arguments, cell.folder, launch)
                print(f"start {cell.title}: {shlex.join(words)}", flush=True)
                devices = _devices(launch, slots[cell.hash])
                jobs[cell.hash] = executor.submit(_command(_on_devices(words, launch, devices)))
        statuses = folders.statuses(grid) if not jobs else statuses
        if not jobs and not any(status.state == RUNNING for status in statuses.values()):
            return grid.check_needs(statuses)
        for _ in range(int(POLL * 10)):
            if not stop:
                time.sleep(0.1)


def _executor(launch: Launch, out: Path) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UserError("cells are started by submitit: pip install 'vitwarm[budget]'") from error
    executor = submitit.AutoExecutor(folder=out / "jobs", cluster=launch.executor)
    parameters = {"timeout_min": _LONG} if launch.executor == "local" else {}
    try:
        executor.update_parameters(name="vitwarm", **(parameters | launch.submit))
    except (NameError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"submit: {error}") from error
    return executor


def _command(words: list[str]) -> Any:
    import submitit

    return submitit.helpers.CommandFunction(words)


def _devices(launch: Launch, slot: int) -> str | None:
    """The GPUs of a local slot: all of them for one job at a time, else an equal part, or one that jobs share."""
    if launch.executor == "slurm" or launch.jobs == 1:
        return None
    import torch

    count = torch.cuda.device_count()
    if not count:
        return None
    own = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = own.split(",") if own else [str(i) for i in range(count)]
    return ",".join(names[slot :: launch.jobs] or [names[slot % len(names)]])


def _last_words(job: Any) -> str:
    """The reason why a cell failed: the last line of vitwarm, else the first that names an error, else the first."""
    text = (job.stderr() or "") + "\n" + (job.stdout() or "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("vitwarm:") and "warning" not in line]
    if not ours and (signal := re.search(r"died with <Signals\.(\w+)", text)):
        return f"it was killed ({signal[1]})"
    faults = [line for line in lines if "Error" in line and not line.startswith("submitit")]
    last = (ours or faults or lines or [f"no output; see job {job.job_id}"])[-1 if ours else 0]
    return last.removeprefix("vitwarm: ").removeprefix("error: ")[-500:]  # how a command died stands behind it


def _end(jobs: dict[str, Any], launch: Launch) -> None:
    """Signal the trainings of this machine to save and end; jobs on Slurm continue by themselves."""
    if launch.executor == "slurm" or not jobs:
        return
    import psutil

    print(f"waiting for {len(jobs)} runs to write a checkpoint", flush=True)
    asked = set()
    while running := [job for job in jobs.values() if not job.done()]:
        for process in (
            p for job in running for p in _trainings(int(job.job_id), launch)
        ):  # a launcher may start one only now
            if process not in asked:
                asked.add(process)
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()
        time.sleep(0.1)


def _trainings(controller: int, launch: Launch) -> list[Any]:
    """The training processes below a job of submitit's: controller, its task, accelerate if it is used, then they.

    Signals must go to them alone: neither submitit's task nor accelerate passes a SIGTERM on.
    """
    import psutil

    level = []
    with contextlib.suppress(psutil.NoSuchProcess):
        level.append(psutil.Process(controller))
    for _ in range(2 if launch.accelerate is None else 3):
        below = []
        for process in level:
            with contextlib.suppress(psutil.NoSuchProcess):
                below += process.children()
        level = below
    return level


def _write(path: Path, content: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")
