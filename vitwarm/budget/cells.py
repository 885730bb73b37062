"""The progress of each cell, read from its folder alone, so that every process gets the same answer."""

import math
from dataclasses import dataclass
from pathlib import Path

from vitwarm.budget.grid import Cell, Grid
from vitwarm.budget.runs import Run, read_run
from vitwarm.errors import UserError
from vitwarm.files import is_locked
from vitwarm.reading import read_json
from vitwarm.recipe import read_frozen, recipe_hash

DONE, RUNNING, BEGUN, WAITING, CRASHED, FOREIGN = "done", "running", "begun", "waiting", "crashed", "not usable"
MARKS = {DONE: "#", RUNNING: ">", BEGUN: "~", WAITING: ".", CRASHED: "x", FOREIGN: "!"}
FAILURES = "failures.json"


@dataclass(frozen=True)
class Status:
    """State of a cell.

    Attributes:
        run: the finished run; None unless the state is `done`.
        note: why it crashed or cannot be used.
    """

    state: str
    run: Run | None = None
    note: str = ""


class Folders:
    """The run folders of a study, with the finished ones known by the hash of their recipe.

    Args:
        runs: folder that holds them; may be shared by several plans.
        out: folder of the study, which remembers the failures.
    """

    def __init__(self, runs: Path, out: Path):
        self.runs, self.failures_file = runs, out / FAILURES
        self._read: dict[Path, Run] = {}
        self._hashes: dict[tuple[Path, int], str] = {}  # of recipes by file and its time: reading one takes a while

    def failures(self) -> dict[str, str]:
        """Hash of a cell -> last line of output of its last attempt."""
        return read_json(self.failures_file) if self.failures_file.is_file() else {}

    def statuses(self, grid: Grid) -> dict[str, Status]:
        """Hash -> state of every cell."""
        finished = self._finished()
        failures = self.failures()
        return {cell.hash: self._status(cell, finished, failures, grid) for cell in grid.cells}

    def _finished(self) -> dict[str, Path]:
        """Hash named in a result -> its folder; `read_run` checks that hash."""
        found = {}
        for file in sorted(self.runs.glob("*/result.json")):
            try:
                found[read_json(file, recipe_hash=str)["recipe_hash"]] = file.parent
            except UserError:
                continue  # reported by the cell whose folder it is
        return found

    def _status(self, cell: Cell, finished: dict[str, Path], failures: dict[str, str], grid: Grid) -> Status:
        folder = finished.get(cell.hash, cell.folder)
        try:
            if (folder / "result.json").is_file():
                run = self._read.get(folder) or read_run(folder)
                self._read[folder] = run
                if run.hash != cell.hash:
                    return Status(FOREIGN, note=f"{folder} holds a run of another recipe (hash {run.hash})")
                if note := _unusable(run, grid):
                    return Status(FOREIGN, note=f"{folder}: {note}")
                return Status(DONE, run)
            if (folder / "recipe.yaml").is_file():
                theirs = self._hash(folder / "recipe.yaml")
                if theirs != cell.hash:
                    return Status(FOREIGN, note=f"{folder} holds a run of another recipe (hash {theirs})")
        except (UserError, ValueError, KeyError, TypeError, OSError) as error:
            return Status(FOREIGN, note=f"{folder} cannot be read by this version of vitwarm: {error}")
        if is_held(folder):
            return Status(RUNNING)
        if cell.hash in failures:
            return Status(CRASHED, note=failures[cell.hash])
        return Status(BEGUN if folder.is_dir() else WAITING)

    def _hash(self, recipe: Path) -> str:
        key = recipe, recipe.stat().st_mtime_ns
        if key not in self._hashes:
            self._hashes[key] = recipe_hash(read_frozen(recipe))
        return self._hashes[key]


def _unusable(run: Run, grid: Grid) -> str:
    """The reason why the numbers of a finished run cannot be used, or an empty string."""
    if run.result["seed"] != run.config.seed or run.result["recipe_hash"] != run.hash:
        return "result.json belongs to another recipe than recipe.yaml"
    if grid.stage not in run.result["stages"]:
        return f"result.json has no stage {grid.stage}"
    value = run.result["metrics"].get(grid.plan.metric)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return f"result.json has no finite {grid.plan.metric}"
    return ""


def is_held(folder: Path) -> bool:
    """Whether a process on this machine is working in a run folder."""
    return is_locked(folder / ".lock")


def progress(grid: Grid, statuses: dict[str, Status]) -> str:
    """The table of progress, with one mark for each seed."""
    width = max(map(len, grid.plan.arms))
    heads = [f"{100 * budget:g}%" for budget in grid.plan.budgets]
    column = max(len(grid.plan.seeds), *map(len, heads)) + 2
    by_place: dict[tuple[str, float], str] = {}
    for cell in grid.cells:
        place = cell.arm, cell.budget
        by_place[place] = by_place.get(place, "") + MARKS[statuses[cell.hash].state]
    lines = ["".join([" " * width, *(head.rjust(column) for head in heads)])]
    for arm in grid.plan.arms:
        lines.append(arm.ljust(width) + "".join(by_place[arm, b].rjust(column) for b in grid.plan.budgets))
    states = [statuses[cell.hash].state for cell in grid.cells]
    counts = ", ".join(f"{states.count(s)} {s} ({MARKS[s]})" for s in MARKS if s in states)
    return "\n".join([*lines, counts])
