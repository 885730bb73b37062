"""`vitwarm intervals`."""

import json
from dataclasses import dataclass
from pathlib import Path

from vitwarm.cli.words import option
from vitwarm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    """How often the intervals of a budget study hold the truth, by simulated studies."""

    repeats: int = option("simulated studies of each case", 2000, within="[1, inf)")
    out: Path | None = option("write the numbers here", None, form="FILE.json")


def run(options: Options) -> None:
    """Print the table as it grows, write the numbers."""
    from vitwarm.budget.coverage import BUDGETS, CURVES, HEAD, SEEDS, SHARE, line, measure
    from vitwarm.files import write_text

    if options.out is not None:  # before the work, not behind it
        if options.out.is_dir():
            raise UserError(f"out={options.out} is a folder; name a file in it")
        options.out.parent.mkdir(parents=True, exist_ok=True)
    print(HEAD)
    rows = []
    for name in CURVES:
        for seeds in SEEDS:
            rows.append(measure(name, seeds, options.repeats))
            print(line(rows[-1]), flush=True)
    if options.out is not None:
        content = {"share": SHARE, "budgets": BUDGETS, "confidence": 0.95, "repeats": options.repeats, "rows": rows}
        write_text(options.out, json.dumps(content, indent=1) + "\n")
