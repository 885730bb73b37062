"""What a run says before its first step: what is trained on what, on which device, how long, and where it goes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitwarm.assembly import SMOKE_SAMPLES, SMOKE_STEPS, Experiment
from vitwarm.cost import MFU, expected_seconds
from vitwarm.recipe import recipe_hash
from vitwarm.result import device_name
from vitwarm.training.meters import FIRST_STEPS, duration
from vitwarm.training.processes import Processes
from vitwarm.training.protocol import Stage


@dataclass(frozen=True)
class Banner:
    """What is known before the first step; `str()` is what the terminal shows.

    Attributes:
        recipe: its name, hash and seeds.
        folder: of the run.
        device: and how many processes.
        model: its name and parameters.
        data: what was read; None where data are computed.
        stages: stage -> its length, batches, precision, data, and time where one can be said.
        time: when more will be known of it; None where all is said.
        start: the weights that the first step starts from.
    """

    recipe: str
    folder: Path
    device: str
    model: str
    data: str | None
    stages: dict[str, str]
    time: str | None
    start: str

    @classmethod
    def of(
        cls, experiment: Experiment, stages: list[Stage[Any]], seeds: list[int], folder: Path, at: Processes, start: str
    ) -> "Banner":
        """
        Args:
            experiment: of the run, or of the first of its seeds.
            stages: that train, in order.
            seeds: one, or those of an ensemble.
            folder: of the run.
            at: the processes that train.
            start: see the attribute.
        """
        config, main = experiment.config, experiment.main
        smoke = f"; a smoke run: {SMOKE_STEPS} steps a stage, {SMOKE_SAMPLES} samples an evaluation, or fewer"
        seconds = {stage.name: expected_seconds(stage, config.model, at.device, at.world) for stage in stages}
        weights = sum(p.numel() for p in experiment.model.parameters())
        size = config.model.decoder.size
        unknown = [s.name for s in stages if seconds[s.name] is None and s.steps > FIRST_STEPS]
        return cls(
            recipe=f"{config.name} (hash {recipe_hash(config)}), seed{'s' * (len(seeds) > 1)} "
            f"{', '.join(map(str, seeds))}" + (smoke if config.run.smoke else ""),
            folder=folder,
            device=device_name(at.device) + (f", {at.world} processes" if at.world > 1 else ""),
            model=f"{f'decoder {size}' if size else config.model.name}, {weights:,} parameters",
            data=main.data_line() if main is not None else None,
            stages={stage.name: _line(stage, seconds[stage.name]) for stage in stages},
            time=f"said after the first {FIRST_STEPS} steps of {' and of '.join(unknown)}" if unknown else None,
            start=start,
        )

    def __str__(self) -> str:
        rows = {"recipe": self.recipe, "folder": self.folder, "device": self.device, "model": self.model}
        rows |= {"data": self.data} | self.stages | {"time": self.time, "start": self.start}
        width = 2 + max(map(len, rows))
        return "\n".join(f"{label:{width}}{text}" for label, text in rows.items() if text is not None)


def _line(stage: Stage[Any], seconds: float | None) -> str:
    each = f"{stage.optim.global_batch:,} samples of {stage.tokens_per_sample:,} tokens"
    what = f"; {words}" if (words := stage.describe()) else ""
    time = "" if seconds is None else f"; about {duration(seconds)} if the device reaches {100 * MFU:g} % of its peak"
    return f"{stage.steps:,} steps of {each}, {stage.optim.precision}{what}{time}"
