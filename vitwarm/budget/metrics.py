"""Metrics of main stages, as comparisons and studies show them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """Display of a metric of the main stage, and which direction is better.

    Attributes:
        label: name with unit, for axes.
        unit: unit of a difference, for sentences.
        scale: factor from result.json to that unit.
        higher: whether more is better.
    """

    label: str
    unit: str
    scale: float
    higher: bool


METRICS = {
    "top1": Metric("top-1 accuracy, %", "points", 100.0, True),
    "top5": Metric("top-5 accuracy, %", "points", 100.0, True),
    "accuracy": Metric("accuracy, %", "points", 100.0, True),
    "exact": Metric("whole answers, %", "points", 100.0, True),
    "f1": Metric("F1, %", "points", 100.0, True),
    "matthews": Metric("Matthews correlation, %", "points", 100.0, True),
    "loss": Metric("validation loss, nats", "nats", 1.0, False),
}
