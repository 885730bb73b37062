"""Reads finished run folders."""

import glob
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.files import expanded
from vitwarm.reading import read_json, read_json_lines
from vitwarm.recipe import SMOKE, frozen_hash, read_frozen, recipe_hash

WARMUP, EXPORT = "warmup", "export"  # a stage; folders of a run


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        folder: the run folder.
        config: its resolved recipe.
        hash: hash of that recipe.
        result: content of result.json.
        data: content of data.json: what the main stage read -> its digest or size; empty where it computes its data.
    """

    folder: Path
    config: Config
    hash: str
    result: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def flops(self) -> float:
        """Training FLOPs of all stages."""
        return sum(stage["flops"] for stage in self.result["stages"].values())

    def full_cost(self) -> "Cost":
        """Its own stages and whatever trained the weights that it started from, each run once."""
        taken = {(self.folder.resolve(), name): self for name in self.result["stages"]}
        unknown: dict[str, None] = {}
        _collect_sources(self, taken, unknown, {self.folder.resolve()})
        stages = [(name, run.result["stages"][name], run.result["processes"]) for (_, name), run in taken.items()]
        return Cost(
            warmup_samples=sum(stage["samples"] for name, stage, _ in stages if name == WARMUP),
            flops=sum(stage["flops"] for _, stage, _ in stages),
            device_seconds=sum(processes * stage["seconds"] for _, stage, processes in stages),
            unknown=tuple(unknown),
        )

    def curve(self, stage: str, metric: str, event: str = "eval") -> list[tuple[int, float]]:
        """(samples of the stage, value) at each log line of that event which has the metric; none without a log.

        Raises:
            UserError: a step or a value in the log is no number.
        """
        batch = (self.config.warmup if stage == "warmup" else self.config.train).global_batch
        log = self.folder / "log.jsonl"
        entries = read_json_lines(log) if log.is_file() else []
        of_event = [e for e in entries if e.get("event") == event and e.get("stage") == stage and metric in e]
        if any(
            isinstance(v, bool) or not isinstance(v, int | float) for e in of_event for v in (e.get("step"), e[metric])
        ):
            raise UserError(f"{log}: a line of stage {stage} has a step or {metric} that is no number; it is damaged")
        return [(e["step"] * batch, e[metric]) for e in of_event]


@dataclass(frozen=True)
class Cost:
    """The cost of training the weights of a run.

    Attributes:
        warmup_samples: samples of all warm-ups.
        flops: training FLOPs.
        device_seconds: seconds of the stages, evaluations among them, times processes.
        unknown: sources of weights without a finished run to read; they are not counted.
    """

    warmup_samples: float
    flops: float
    device_seconds: float
    unknown: tuple[str, ...]


def _collect_sources(
    run: Run, taken: dict[tuple[Path, str], Run], unknown: dict[str, None], followed: set[Path]
) -> None:
    """Add the stages behind `init_from` and `transfer.sources`, and behind those of the runs that they name, once."""
    for source in filter(None, (run.config.init_from, *run.config.transfer.sources.values())):
        path = expanded(source)
        folder = path.parent if path.name in (WARMUP, EXPORT) else path
        if not (folder / "recipe.yaml").is_file() or not (folder / "result.json").is_file():
            unknown[source] = None
            continue
        found = read_run(folder)
        stages = found.result["stages"]  # a start from a run takes its warm-up alone, if it had one
        alone = path.name == WARMUP or (path.name != EXPORT and WARMUP in stages)
        taken |= {(folder.resolve(), name): found for name in stages if name == WARMUP or not alone}
        if folder.resolve() not in followed:  # folders may lead back to each other
            followed.add(folder.resolve())
            _collect_sources(found, taken, unknown, followed)


def read_run(folder: Path) -> Run:
    """A finished run.

    Raises:
        UserError: not a run folder, the run is not finished, or its result is damaged or of another run.
    """
    if not (folder / "recipe.yaml").is_file():
        raise UserError(f"{folder} is not a run folder (it has no recipe.yaml)")
    if not (folder / "result.json").is_file():
        raise UserError(f"the run in {folder} is not finished (no result.json); run its recipe to the end first")
    config = read_frozen(folder / "recipe.yaml")
    file = folder / "result.json"
    result = read_json(file, seed=int, metrics=dict, stages=dict, processes=int, versions=dict)
    if result["seed"] != config.seed:
        raise UserError(f"{file} is of seed {result['seed']}, recipe.yaml of {config.seed}: they are of two runs")
    for stage, outcome in result["stages"].items():
        for key in ("samples", "seconds", "flops"):
            if not is_finite(outcome.get(key) if isinstance(outcome, dict) else None):
                raise UserError(f"{file}: stages.{stage}.{key} is no finite number; run the recipe again")
    data = read_json(folder / "data.json") if (folder / "data.json").is_file() else {}
    return Run(folder, config, recipe_hash(config), result, data)


def is_finite(value: object) -> bool:
    """Whether a value read from a file is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_smoke(folder: Path) -> bool:
    return (folder / "recipe.yaml").is_file() and frozen_hash(folder / "recipe.yaml").endswith(SMOKE)


def read_arm(pattern: str) -> list[Run]:
    """The finished runs of one arm, by seed.

    Args:
        pattern: glob of run folders; files that match, such as logs, and smoke runs are passed over.

    Raises:
        UserError: no folder, an unfinished run, or a seed that comes twice.
    """
    found = [path for p in sorted(glob.glob(str(expanded(pattern)))) if (path := Path(p)).is_dir()]
    folders = [path for path in found if not _is_smoke(path)]
    if not folders:
        raise UserError(f"no run folder matches {pattern}" + " but smoke runs, which are no results" * bool(found))
    runs = sorted((read_run(f) for f in folders), key=lambda r: r.config.seed)
    seeds = [r.config.seed for r in runs]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{pattern}: two runs have the same seed; each seed counts once")
    return runs
