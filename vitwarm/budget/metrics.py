"""Metrics of main stages, as comparisons and studies show them."""

import math
from dataclasses import dataclass

from vitwarm.config import Config


@dataclass(frozen=True)
class Metric:
    """Display of a metric of the main stage, and which direction is better.

    Attributes:
        label: name with unit, for axes.
        unit: unit of a difference, for sentences.
        scale: factor from result.json to that unit.
        higher: whether more is better.
        least, most: the values that it can have, in that unit; the axes of figures stay between them.
    """

    label: str
    unit: str
    scale: float
    higher: bool
    least: float = 0.0
    most: float = 100.0

    @property
    def form(self) -> str:
        """Format of a value: a loss differs in its fourth decimal."""
        return ".2f" if self.unit == "points" else ".4f"


METRICS = {
    "top1": Metric("top-1 accuracy, %", "points", 100.0, True),
    "top5": Metric("top-5 accuracy, %", "points", 100.0, True),
    "accuracy": Metric("accuracy, %", "points", 100.0, True),
    "exact": Metric("whole answers, %", "points", 100.0, True),
    "f1": Metric("F1, %", "points", 100.0, True),
    "matthews": Metric("Matthews correlation, %", "points", 100.0, True, least=-100.0),
    "loss": Metric("validation loss, nats", "nats", 1.0, False, most=math.inf),
}


def metric_of(name: str) -> Metric:
    """How a metric of result.json is shown; one that is no headline is a share, or a loss, perplexity or count."""
    words = name.replace("_", " ")
    if name.endswith(("loss", "perplexity")):
        other = Metric(words, "", 1.0, False, most=math.inf)
    elif name in ("count", "level"):
        other = Metric(words, "", 1.0, True, most=math.inf)
    else:
        other = Metric(f"{words}, %", "points", 100.0, True)
    return METRICS.get(name, other)


def measured(config: Config, stage: str) -> set[str]:
    """The keys of `METRICS` that a recipe's main stage measures; none without validation images."""
    match stage, config.text.task:
        case "images", _:
            return {"loss", "top1", "top5"} if config.images.val else set()
        case ("algorithmic", _) | ("text", "mathematics"):
            return {"loss", "accuracy", "exact"}
        case "text", "cola":
            return {"loss", "accuracy", "matthews"}
        case "text", ("mrpc" | "qqp"):
            return {"loss", "accuracy", "f1"}
        case _:
            return {"loss", "accuracy"}


def counted(config: Config, stage: str) -> str:
    """What an evaluation of a main stage counts."""
    match stage, config.text.task:
        case "images", _:
            return "images"
        case ("algorithmic", _) | ("text", "mathematics"):
            return "questions"
        case "text", "language":
            return "predictions"
        case _:
            return "examples"
