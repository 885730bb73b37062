"""Runs a budget plan in a folder, and reports on it."""

import json
import math
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

from vitwarm.budget.cells import DONE, Folders, require_whole
from vitwarm.budget.efficiency import analyse, plan_warnings
from vitwarm.budget.grid import Grid, Work, make_grid
from vitwarm.budget.launch import Launch, carry_out, train_command
from vitwarm.budget.plan import Plan
from vitwarm.budget.report import write_report
from vitwarm.budget.wording import headline
from vitwarm.checks import warms_up
from vitwarm.config import Config
from vitwarm.cost import estimate
from vitwarm.errors import UserError
from vitwarm.files import write_text
from vitwarm.reading import read_json, read_json_lines
from vitwarm.recipe import SMOKE, recipe_hash
from vitwarm.signals import check_stop

CELLS, RATES = "cells", "rates.json"


class StudyFolder:
    """A budget plan and the folder that its results lie in.

    It estimates what each run of the plan takes, measuring the speed first where the budget is time, starts the runs
    that are not finished, and writes the report into the folder.

    Args:
        plan: the plan.
        out: folder of the study.
        launch: how runs are started.
        runs: folder that holds the run folders; plans that share it share the cells that they have in common.
        measure: measure the speed where that was not done; else only what is known of it counts.

    Raises:
        UserError: the plan cannot be carried out as it is.
    """

    def __init__(self, plan: Plan, out: Path, launch: Launch, runs: Path | None = None, *, measure: bool = True):
        self.plan, self.out, self.launch, self.runs = plan, out, launch, runs or out / CELLS
        self.folders = Folders(self.runs, out)
        file = out / RATES  # by the hash of an arm's full recipe: the rate of another recipe would be wrong
        self.rates: dict[str, dict[str, float]] = read_json(file) if file.is_file() else {}
        if plan.unit == "device_seconds" and measure:
            self.measure_rates()
        else:
            self.grid = self._grid()

    def _grid(self) -> Grid:
        return make_grid(self.plan, self.runs, self._work)

    def _work(self, config: Config) -> dict[str, Work]:
        """Estimate the work of each stage of a full run; seconds where a rate was measured."""
        found: dict[str, Work] = {}
        baseline = recipe_hash(self.plan.recipe_of(self.plan.baseline))
        rates = self.rates.get(recipe_hash(config), self.rates.get(baseline, {}))
        for line in estimate(config, gpus=1, device="h100", train_images=self.plan.train_images).lines:
            if line.name != "evaluation":  # whose line follows its stage's
                stage = line.name
                seconds = None if stage not in rates else rates[stage] * line.steps
                found[stage] = Work(line.steps, line.samples, line.tokens, line.flops, seconds)
            elif line.flops:
                found[stage] = replace(found[stage], evaluation=line.flops / found[stage].flops)
        return found

    def measure_rates(self) -> None:
        """Measure device-seconds a step where that was not done: the baseline, and arms with a warm-up of their own.

        Raises:
            UserError: such a run failed.
            Interrupted: a signal came; what was measured before is kept.
        """
        for name in self.plan.arms:
            config = self.plan.recipe_of(name)
            if recipe_hash(config) not in self.rates and (name == self.plan.baseline or warms_up(config)):
                print(f"measuring the speed of {name}: a smoke run", flush=True)
                self.rates[recipe_hash(config)] = self._probe(name)
                self.out.mkdir(parents=True, exist_ok=True)
                write_text(self.out / RATES, json.dumps(self.rates, indent=1) + "\n")
        self.grid = self._grid()

    def _probe(self, arm: str) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "probe"
            words = self.plan.arguments(arm, self.plan.seeds[0], "run.smoke=true")
            done = subprocess.run(train_command(words, folder, self.launch), capture_output=True, text=True)
            check_stop()  # a signal to the whole group has stopped the run as well
            folder = folder.with_name(f"{folder.name}{SMOKE}")
            if not (folder / "result.json").is_file():
                last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
                ours = [line for line in last if line.startswith("vitwarm:")]
                raise UserError(f"the speed of {arm} cannot be measured: {(ours or last)[-1]}")
            processes = read_json(folder / "result.json", processes=int)["processes"]
            lines = read_json_lines(folder / "log.jsonl")
        steps = {e["stage"]: e["step_ms_p50"] for e in lines if e["event"] == "train"}  # the last line: it has run in
        return {name: processes * ms / 1000 for name, ms in steps.items()}

    def summary(self) -> str:
        """Every cell with its cost and state, then what is left to do."""
        statuses = self.folders.statuses(self.grid)
        head = f"{'cell':<40}{'steps':>20}{'FLOPs':>11}{'device-hours':>14}  state"
        rows = []
        left = [0.0, 0.0]
        for cell in self.grid.cells:
            state = statuses[cell.hash].state
            seconds = [work.seconds_in_all for work in cell.work.values()]
            known = [s for s in seconds if s is not None]
            hours = sum(known) / 3600 if len(known) == len(seconds) else None
            flops = sum(work.flops for work in cell.work.values())
            if state != DONE:
                left = [left[0] + flops, left[1] + (math.nan if hours is None else hours)]
            steps = " + ".join(f"{work.steps:,.0f}" for work in cell.work.values())
            shown = "" if hours is None else f"{hours:.3g}"
            rows.append(f"{cell.title:<40}{steps:>20}{flops:>11.3g}{shown:>14}  {state}")
        time_left = "no rate measured" if math.isnan(left[1]) else f"{left[1]:.3g} device-hours at the measured rate"
        total = f"left to do: {left[0]:.3g} FLOPs, {time_left}"
        warnings = [f"warning: {text}" for text in [*self.grid.warnings, *plan_warnings(self.plan)]]
        return "\n".join([head, *rows, "", self.grid.progress(statuses), "", total, *warnings])

    def run(self, stop: list[int]) -> None:
        """Carry out what is not finished; see `carry_out`."""
        carry_out(self.grid, self.folders, self.launch, self.out, stop)

    def require_whole(self) -> None:
        """Refuse a study in which a run failed; see `vitwarm.budget.cells.require_whole`."""
        require_whole(self.grid.cells, self.folders.statuses(self.grid))

    def report(self, command: str) -> str:
        """Write the report of what is finished; returns its headline and where it is."""
        found = analyse(self.grid, self.folders.statuses(self.grid), command)
        files = write_report(found, self.out)
        return f"{headline(found)}\nwritten: {files[0]}"
