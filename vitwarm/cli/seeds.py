"""`vitwarm seeds`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from vitwarm.cli.words import option, rest


@dataclass(frozen=True, kw_only=True)
class Options:
    """Final metrics of finished runs, seed by seed: a table with paired differences.

    Differences are to the first arm (of each panel). The figure has a dot for each seed and shows the first metric.
    """

    metrics: tuple[str, ...] = option("metrics of result.json", ("accuracy",), form="METRIC,...")
    out: Path | None = option("write the numbers here", None, form="FILE.json")
    png: Path | None = option("draw the figure here", None, form="FILE.png", suffix=".png")
    arms: dict[str, str] = rest("[PANEL/]ARM=RUNS_GLOB", "run folders of an arm, one for each seed", required=True)


def run(options: Options) -> None:
    """Print the table, write the numbers, draw the figure."""
    from vitwarm.budget.runs import read_arm
    from vitwarm.budget.seeds import markdown, plot, seed_rows
    from vitwarm.files import write_text

    rows = seed_rows({arm: read_arm(pattern) for arm, pattern in options.arms.items()}, list(options.metrics))
    print(markdown(rows))
    for file in filter(None, (options.out, options.png)):
        file.parent.mkdir(parents=True, exist_ok=True)
    if options.out is not None:
        write_text(options.out, json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    if options.png is not None:
        plot([r for r in rows if r.metric == rows[0].metric], options.png)
