"""Runs a plan of the laboratory in a folder, and reports on it."""

from pathlib import Path

from vitwarm.budget.cells import DONE, FOREIGN, Folders, Status, require_whole
from vitwarm.budget.launch import Launch, carry_out
from vitwarm.cost import estimate
from vitwarm.errors import UserError
from vitwarm.lab.grid import LabCell, make_lab
from vitwarm.lab.outcomes import find_outcomes
from vitwarm.lab.plan import LabPlan
from vitwarm.lab.report import write_report
from vitwarm.recipe import read_frozen
from vitwarm.run_folder import RECIPE

RUNS = "runs"


class LabFolder:
    """A plan of the laboratory and the folder that its results lie in.

    It lists the runs of the plan with their states, starts those that are not finished, and writes the report into the
    folder.

    Args:
        plan: the plan.
        out: folder of the plan.
        launch: how runs are started.
        runs: folder that holds the run folders; plans that share it share the cells that they have in common.

    Raises:
        UserError: the plan cannot be carried out as it is.
    """

    def __init__(self, plan: LabPlan, out: Path, launch: Launch, runs: Path | None = None):
        self.out, self.launch = out, launch
        runs = _as_named(runs or out / RUNS)
        self.lab = make_lab(plan, runs)
        self.folders = Folders(runs, out)
        self.unreadable: dict[str, Status] = {}  # finished runs that the last report could not read

    def summary(self) -> str:
        """Every cell with its state, and the time that is left on a core."""
        statuses = self.folders.statuses(self.lab)
        rows, left = [], 0.0
        for cell, own in zip(self.lab.cells, self._seconds(), strict=True):
            left += own if statuses[cell.hash].state != DONE else 0.0
            rows.append(f"{cell.title:<70}{own:>9.0f} s  {statuses[cell.hash].state}")
        total = f"left to do: about {left / 3600:.1f} hours of a core"
        return "\n".join([*rows, "", self.lab.progress(statuses), total])

    def _seconds(self) -> list[float]:
        """What each cell takes on a core. Refuses those that could not start: their warm-ups must not be trained."""
        known: dict[tuple, float] = {}  # of a kind of cell
        for cell in self.lab.cells:
            if (kind := _kind(cell)) not in known:
                try:
                    known[kind] = estimate(cell.config, gpus=1, device="cpu core").seconds
                except UserError as error:
                    raise UserError(f"plan {self.lab.plan.name}: {cell.title}: {error}") from error
        return [known[_kind(cell)] for cell in self.lab.cells]

    def run(self, stop: list[int]) -> None:
        """Carry out what is not finished; see `carry_out`.

        Raises:
            UserError: a cell could not start, or see there.
        """
        self._seconds()
        carry_out(self.lab, self.folders, self.launch, self.out, stop)

    def require_whole(self) -> None:
        """Refuse a plan in which a run failed; see `vitwarm.budget.cells.require_whole`."""
        require_whole(self.lab.cells, self.folders.statuses(self.lab) | self.unreadable)

    def report(self, command: str) -> str:
        """Write the report of what is finished; returns its headline and where it is."""
        found = find_outcomes(self.lab, self.folders.statuses(self.lab), self.out, command)
        outcomes = [outcome for row in found.rows for outcome in row.outcomes if outcome.state == FOREIGN]
        self.unreadable = {outcome.hash: Status(FOREIGN, note=outcome.note) for outcome in outcomes}
        files = write_report(found, self.out)
        return "\n".join([*found.headline(), f"written: {files[0]}"])


def _as_named(runs: Path) -> Path:
    """The folder of runs as the recipes in it name it: the path of a warm-up is part of the hashes of its tasks.

    Raises:
        UserError: they name it from another directory, so that no finished cell would be known here.
    """
    there, here = runs.resolve(), Path.cwd()
    for file in sorted(runs.glob(f"*/{RECIPE}")):
        try:
            config = read_frozen(file)
        except UserError:
            continue  # reported by the cell whose folder it is
        for source in filter(None, (config.init_from, *config.transfer.sources.values())):
            named = Path(source).parent
            if named.resolve() == there:
                return named
            if not named.is_absolute() and there.parts[-len(named.parts) :] == named.parts:
                begun = Path(*there.parts[: -len(named.parts)])
                raise UserError(f"the runs in {runs} name their warm-ups as seen from {begun}; start the command there")
    return runs.relative_to(here) if runs.is_relative_to(here) else runs


def _kind(cell: LabCell) -> tuple:
    """What the cost of a cell hangs on: its command without the seed and the start."""
    return tuple(w for w in cell.arguments if not w.startswith(("seed=", "init_from=", "transfer.")))
