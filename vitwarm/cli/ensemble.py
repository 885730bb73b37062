"""`vitwarm ensemble`."""

from dataclasses import dataclass

from vitwarm.cli.recipe_options import RecipeOptions
from vitwarm.cli.words import option
from vitwarm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options(RecipeOptions):
    """Train many seeds of a tiny decoder at once, or resume them.

    Writes FOLDER/RECIPE-seedN (FOLDER is run.dir, `runs` by default) with recipe, log, export and result for each
    seed N, and FOLDER/RECIPE-ensembleSEEDS with the checkpoints and the log of all. `{seed}` in init_from and
    transfer.sources stands for N. See docs/language.md.
    """

    seeds: tuple[int, ...] = option("the seeds: 0-9, or 0,2,5", form="0-9")


def run(options: Options) -> None:
    """Train; prints the metrics of each seed."""
    if "seed" in options.overrides:
        raise UserError("seed= is for one run; an ensemble takes seeds=")
    from vitwarm.recipe import load_recipe

    config = load_recipe(options.recipe_words)
    from vitwarm.run import run_ensemble  # imports torch: only once the recipe is known to be good

    for result in run_ensemble(config, options.seeds):
        shown = ", ".join(f"{k} {v:.4f}" for k, v in result["metrics"].items() if k != "count")
        print(f"seed {result['seed']}: {shown}")
