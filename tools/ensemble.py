"""python tools/ensemble.py recipe=NAME seeds=0-9 [run.dir=FOLDER] [key=value ...]: many seeds of a tiny model at once.

Writes FOLDER/RECIPE-seedN (FOLDER is runs by default) with recipe, log, export and result for each seed N. `{seed}` in
init_from and transfer.sources stands for N. For recipes of decoders; see docs/language.md.
"""

import re

from vitwarm.cli import guarded
from vitwarm.errors import UserError


def main(arguments: list[str]) -> None:
    """Read the command line; all but `seeds` is the recipe and its overrides."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__.strip())
        return
    given = [a.removeprefix("seeds=") for a in arguments if a.startswith("seeds=")]
    span = re.fullmatch(r"(\d+)-(\d+)", given[0]) if len(given) == 1 else None
    if span is None or int(span[1]) > int(span[2]):
        raise UserError("say which seeds: seeds=0-9")
    if any(a.startswith("seed=") for a in arguments):
        raise UserError("seed= is for one run; seeds= says it here")
    from vitwarm.recipe import load_recipe

    config = load_recipe([a for a in arguments if not a.startswith("seeds=")])
    from vitwarm.run import run_ensemble  # imports torch: only once the recipe is known to be good

    for result in run_ensemble(config, range(int(span[1]), int(span[2]) + 1)):
        shown = ", ".join(f"{k} {v:.4f}" for k, v in result["metrics"].items() if k != "count")
        print(f"seed {result['seed']}: {shown}")


if __name__ == "__main__":
    guarded(main)()
