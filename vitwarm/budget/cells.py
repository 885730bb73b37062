"""The progress of each cell, read from its folder alone, so that every process gets the same answer."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vitwarm.budget.comparable import other_data
from vitwarm.budget.runs import Run, read_run
from vitwarm.errors import UserError
from vitwarm.files import is_locked
from vitwarm.reading import read_json
from vitwarm.recipe import frozen_hash, read_frozen, recipe_hash

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


class Cell(Protocol):
    """What states and launches need of a cell: one run of a study."""

    @property
    def title(self) -> str: ...

    @property
    def hash(self) -> str:
        """Of its recipe: a finished run with this hash is this cell, whatever its folder is called."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """The command line that gives the recipe."""

    @property
    def folder(self) -> Path: ...

    def ready(self) -> bool:
        """Whether the runs that it starts from have left what it needs."""


class Cells(Protocol):
    """What states and launches need of a study."""

    @property
    def cells(self) -> Sequence[Cell]:
        """In the order in which they are carried out."""

    def unusable(self, run: Run) -> str:
        """The reason why the numbers of a finished run cannot be used, or an empty string."""

    def progress(self, statuses: dict[str, Status]) -> str:
        """What to print whenever a state changes."""

    def check_needs(self, statuses: dict[str, Status]) -> None:
        """Check, when all is over, that no cell waits for what will never be there.

        Raises:
            UserError: one does.
        """


def require_whole(cells: Iterable[Cell], statuses: dict[str, Status]) -> None:
    """Refuse a study in which a run failed: what was finished is in the report, and the exit code must say the rest.

    Raises:
        UserError: naming the first such run.
    """
    failed = [(cell.title, status) for cell in cells if (status := statuses[cell.hash]).note]
    if failed:
        title, status = failed[0]
        remedy = "the same command tries again"
        if status.state == FOREIGN:
            remedy = "remove or move its folder, and the same command makes it anew"
        raise UserError(f"{len(failed)} run{'s'[: len(failed) > 1]} failed, first {title}: {status.note}; {remedy}")


class Folders:
    """The run folders of a study, with the finished ones known by the hash of their recipe.

    Args:
        runs: folder that holds them; may be shared by several plans.
        out: folder of the study, which remembers the failures.

    Raises:
        UserError: one of them is a file.
    """

    def __init__(self, runs: Path, out: Path):
        for key, folder in (("out", out), ("runs", runs)):
            if folder.exists() and not folder.is_dir():
                raise UserError(f"{folder} is a file; give a folder as {key}")
        self.runs, self.failures_file = runs, out / FAILURES
        self._read: dict[Path, Run] = {}
        self._hashes: dict[tuple[Path, int], str] = {}  # of recipes by file and its time: reading one takes a while
        self._named: dict[tuple[Path, int], str] = {}  # likewise the hashes named in results

    def failures(self) -> dict[str, str]:
        """Hash of a cell -> last line of output of its last attempt."""
        try:
            found = read_json(self.failures_file)
        except UserError:  # not there, or damaged: these are notes, and what crashed is tried again anyway
            return {}
        return {digest: note for digest, note in found.items() if isinstance(note, str)}

    def statuses(self, grid: Cells) -> dict[str, Status]:
        """Hash -> state of every cell."""
        finished = self._finished()
        failures = self.failures()
        return _on_the_latest_data({cell.hash: self._status(cell, finished, failures, grid) for cell in grid.cells})

    def _finished(self) -> dict[str, Path]:
        """Hash named in a result -> its folder; `read_run` checks that hash."""
        found = {}
        for file in sorted(self.runs.glob("*/result.json")):
            try:
                key = file, file.stat().st_mtime_ns
                if key not in self._named:
                    self._named[key] = read_json(file, recipe_hash=str)["recipe_hash"]
            except (UserError, OSError):
                continue  # reported by the cell whose folder it is
            found[self._named[key]] = file.parent
        return found

    def _status(self, cell: Cell, finished: dict[str, Path], failures: dict[str, str], grid: Cells) -> Status:
        folder = finished.get(cell.hash, cell.folder)
        try:
            if (folder / "result.json").is_file():
                run = self._read.get(folder) or read_run(folder)
                self._read[folder] = run
                if run.hash != cell.hash:
                    return Status(FOREIGN, note=f"{folder} holds a run of another recipe (hash {run.hash})")
                if note := _of_another(run) or grid.unusable(run):
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


def _on_the_latest_data(statuses: dict[str, Status]) -> dict[str, Status]:
    """The states, with runs marked whose data were changed before the last run read them: those do not compare."""
    done = [status.run for status in statuses.values() if status.run is not None and status.run.data]
    if not done:
        return statuses
    latest = max(done, key=lambda run: (run.folder / "result.json").stat().st_mtime_ns)
    return {
        digest: Status(FOREIGN, note=f"{status.run.folder} {differing}")
        if status.run is not None and (differing := other_data(status.run, latest))
        else status
        for digest, status in statuses.items()
    }


def _of_another(run: Run) -> str:
    """The reason why a result does not belong to its folder, or an empty string."""
    return "" if run.result.get("recipe_hash") == run.hash else "result.json belongs to another recipe than recipe.yaml"


def folder_of(runs: Path, name: str, seed: int, digest: str) -> Path:
    """Where a cell's run lies: finished under its own name, or under whatever name another plan has finished it.

    Without any it is where it would be made.

    Args:
        runs: folder of the run folders.
        name: of the cell.
        seed: of the run.
        digest: hash of its recipe.
    """
    end = f"-seed{seed}-{digest[:6]}"
    own = runs / f"{name}{end}"
    others = (f.parent for f in sorted(runs.glob(f"*{end}/result.json")) if f.with_name("recipe.yaml").is_file())
    found = sorted(others, key=lambda folder: folder != own)  # tasks name the folder of their warm-up: it must stay
    return next((folder for folder in found if frozen_hash(folder / "recipe.yaml") == digest), own)


def is_held(folder: Path) -> bool:
    """Whether a process on this machine is working in a run folder."""
    return is_locked(folder / ".lock")


def counts(states: Iterable[str]) -> str:
    """How many cells are in each state, with its mark."""
    found = Counter(states)
    return ", ".join(f"{found[state]} {state} ({MARKS[state]})" for state in MARKS if found[state])
