"""Finished cells with chosen values, for studies whose answers are known."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

from vitwarm.budget.cells import CRASHED, DONE, Status
from vitwarm.budget.grid import Cell, Grid, Work
from vitwarm.budget.plan import Arm, Plan
from vitwarm.budget.runs import Run
from vitwarm.recipe import load_recipe

ARMS = {"default": Arm("default", "digits_default"), "warmed": Arm("warmed", "digits_proc")}
STEPS, WARMUP = 1000, 100  # of the full main stage; of the warm-up, a tenth of it


@cache
def recipe(*arguments):
    return load_recipe(list(arguments))


def make(folder: Path, value, budgets=(0.25, 0.5, 1.0), seeds=(0, 1, 2), arms=ARMS, curve=None, lost=(), **changes):
    """A grid whose cells are done with `value(arm, main share, seed)`, but for the `lost` (arm, budget, seed).

    `curve(arm, share, seed)` gives the evaluations of full runs, at every tenth of them but the last. All cells of an
    arm keep the recipe of its full run: loading each would take most of a test's time.
    """
    plan = Plan("tiny", "", arms, "default", budgets, seeds, **changes)
    cells, work, statuses = [], {}, {}
    for name, arm in arms.items():
        arguments = (f"recipe={arm.recipe}", *(f"{k}={v}" for k, v in arm.set.items()))
        config = recipe(*arguments)
        steps = {"images": STEPS} | ({"warmup": WARMUP} if config.warmup.budget != "0" else {})
        work[name] = {s: Work(n, 64 * n, 64 * 16 * n, 1e6 * n, 0.01 * n) for s, n in steps.items()}
        paid = WARMUP / STEPS if "warmup" in steps and plan.setting == "substitutive" else 0.0
        for budget in budgets:
            for seed in seeds:
                place, digest = folder / f"{name}-{budget}-{seed}", f"{name[:4]}{100 * budget:04.0f}{seed:04}"
                ours = replace(config, seed=seed)
                cells.append(Cell(name, budget, seed, budget - paid, ours, digest, arguments, place, work[name]))
    grid = Grid(plan, cells, "images", work)
    for cell in cells:
        if (cell.arm, cell.budget, cell.seed) in lost:
            statuses[cell.hash] = Status(CRASHED, note="the disk is full")
        else:
            statuses[cell.hash] = Status(DONE, finished(grid, cell, value(cell.arm, cell.main, cell.seed), curve))
    return grid, statuses


def finished(grid: Grid, cell: Cell, value: float, curve=None) -> Run:
    batch = cell.config.train.global_batch
    steps = {"images": round(STEPS * cell.main)} | ({"warmup": WARMUP} if "warmup" in grid.work[cell.arm] else {})
    stages = {
        name: {"samples": batch * n, "tokens": batch * 16 * n, "flops": 1e6 * n, "seconds": 0.01 * n}
        for name, n in steps.items()
    }
    cell.folder.mkdir(parents=True)
    shares = [i / 10 for i in range(1, 11)] if curve else []
    values = [value if share == 1 else curve(cell.arm, share, cell.seed) for share in shares]
    lines = [
        {"event": "eval", "stage": "images", "step": round(share * steps["images"]), grid.plan.metric: v}
        for share, v in zip(shares, values, strict=True)
    ]
    (cell.folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {
        "seed": cell.seed,
        "recipe_hash": cell.hash,
        "start": "fresh weights",
        "stages": stages,
        "metrics": {grid.plan.metric: value},
        "processes": 2,
        "device": "a device",
        "versions": {"torch": "2.6"},
    }
    return Run(cell.folder, cell.config, cell.hash, result)
