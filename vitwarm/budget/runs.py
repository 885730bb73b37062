"""Finished run folders, read back."""

import glob
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.recipe import read_frozen, recipe_hash


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        folder: where it is.
        config: its resolved recipe.
        hash: of that recipe.
        result: content of result.json.
    """

    folder: Path
    config: Config
    hash: str
    result: dict[str, Any]

    @property
    def flops(self) -> float:
        """Training FLOPs of all stages."""
        return sum(stage["flops"] for stage in self.result["stages"].values())

    def curve(self, stage: str, metric: str, event: str = "eval") -> list[tuple[int, float]]:
        """(samples of the stage, value) at each log line of that event which has the metric."""
        batch = (self.config.warmup if stage == "warmup" else self.config.train).global_batch
        with open(self.folder / "log.jsonl") as lines:
            entries = [json.loads(line) for line in lines]
        return [
            (e["step"] * batch, e[metric])
            for e in entries
            if e.get("event") == event and e.get("stage") == stage and metric in e
        ]


def read_run(folder: Path) -> Run:
    """A finished run.

    Raises:
        UserError: no run folder, or the run is not finished.
    """
    if not (folder / "recipe.yaml").is_file():
        raise UserError(f"{folder} is no run folder (it has no recipe.yaml)")
    if not (folder / "result.json").is_file():
        raise UserError(f"the run in {folder} is not finished (no result.json); run its recipe to the end first")
    config = read_frozen(folder / "recipe.yaml")
    return Run(folder, config, recipe_hash(config), json.loads((folder / "result.json").read_text()))


def read_arm(pattern: str) -> list[Run]:
    """The finished runs of one arm, by seed.

    Args:
        pattern: glob of run folders.

    Raises:
        UserError: no folder, an unfinished run, or a seed that comes twice.
    """
    folders = [Path(p) for p in sorted(glob.glob(str(Path(pattern).expanduser())))]
    if not folders:
        raise UserError(f"no run folder matches {pattern}")
    runs = sorted((read_run(f) for f in folders), key=lambda r: r.config.seed)
    seeds = [r.config.seed for r in runs]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{pattern}: two runs have the same seed; each seed counts once")
    return runs
