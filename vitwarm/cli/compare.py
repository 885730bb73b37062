"""`vitwarm compare`."""

from dataclasses import dataclass
from pathlib import Path

from vitwarm.cli.words import option, rest


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare finished runs of arms: table, paired intervals, learning curves."""

    out: Path = option("folder of the report", form="FOLDER")
    tuned: tuple[str, ...] = option("keys beyond the start of the trunk in which arms may differ", (), form="KEY,...")
    arms: dict[str, str] = rest(
        "ARM=RUNS_GLOB", "run folders of an arm, one for each seed; the baseline first", required=True
    )


def run(options: Options) -> None:
    """Write the report; prints its table."""
    from vitwarm.budget.compare import report
    from vitwarm.budget.runs import read_arm

    arms = {arm: read_arm(pattern) for arm, pattern in options.arms.items()}
    print(report(arms, options.out, list(options.tuned)))
    print(f"written: {options.out}/compare.md, compare.json, compare.png, differences.png")
