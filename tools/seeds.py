"""python tools/seeds.py [PANEL/]ARM=RUNS_GLOB ... [metrics=accuracy,exact] [out=FILE.json] [png=FILE.png]

Final metrics of finished runs, seed by seed: a Markdown table with paired differences to the first arm (of each panel),
and a dot for each seed. The picture shows the first metric.
"""

import json
from dataclasses import asdict
from pathlib import Path

from vitwarm.budget.runs import read_arm
from vitwarm.budget.seeds import markdown, plot, seed_rows
from vitwarm.cli import guarded

OPTIONS = ("metrics", "out", "png")


def main(arguments: list[str]) -> None:
    """Read the command line, print the table, write the numbers, draw the picture."""
    pairs = [a.partition("=") for a in arguments]
    arms = {name: read_arm(value) for name, _, value in pairs if name not in OPTIONS}
    if not arms:
        print(__doc__.strip())
        return
    own = {name: value for name, _, value in pairs if name in OPTIONS}
    rows = seed_rows(arms, own.get("metrics", "accuracy").split(","))
    print(markdown(rows))
    if "out" in own:
        Path(own["out"]).write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    if "png" in own:
        plot([r for r in rows if r.metric == rows[0].metric], Path(own["png"]))


if __name__ == "__main__":
    guarded(main)()
