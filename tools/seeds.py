"""python tools/seeds.py ARM=RUNS_GLOB ... [metrics=accuracy,exact] [out=FILE.json]: final metrics, seed by seed.

A Markdown table of finished runs: for each arm the value of every seed, their mean and standard deviation.
"""

import json
import statistics
from pathlib import Path

from vitwarm.budget.runs import read_arm
from vitwarm.cli import guarded
from vitwarm.errors import UserError


def main(arguments: list[str]) -> None:
    """Read the command line, print the table, write the numbers."""
    pairs = [a.partition("=") for a in arguments]
    arms = {name: read_arm(value) for name, _, value in pairs if name not in ("metrics", "out")}
    if not arms:
        print(__doc__.strip())
        return
    own = {name: value for name, _, value in pairs if name in ("metrics", "out")}
    metrics = own.get("metrics", "accuracy").split(",")
    rows = []
    for arm, runs in arms.items():
        for metric in metrics:
            if any(metric not in r.result["metrics"] for r in runs):
                raise UserError(f"{arm} has no metric {metric}; it has {', '.join(runs[0].result['metrics'])}")
            by_seed = {r.config.seed: 100 * r.result["metrics"][metric] for r in runs}
            row = {
                "arm": arm,
                "recipe": runs[0].config.name,
                "hashes": sorted({r.hash for r in runs}),
                "metric": metric,
            }
            rows.append(row | {"start": runs[0].result["start"], "percent": by_seed})
    print("| arm | metric | mean | sd | each seed, % |\n|---|---|---|---|---|")
    for row in rows:
        found = list(row["percent"].values())
        spread = f"{statistics.stdev(found):.1f}" if len(found) > 1 else ""
        each = ", ".join(f"{v:.1f}" for v in found)
        print(f"| {row['arm']} | {row['metric']} | {statistics.mean(found):.1f} | {spread} | {each} |")
    if "out" in own:
        Path(own["out"]).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    guarded(main)()
