"""`vitwarm ensemble`."""

from dataclasses import dataclass

from vitwarm.cli.recipe_options import RecipeOptions
from vitwarm.cli.words import option
from vitwarm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options(RecipeOptions):
    """Train many seeds at once, or resume them.

    On a GPU the weights of tiny decoders are stacked; on a CPU each seed is a process, as many at once as there are
    cores. Writes FOLDER/RECIPE-seedN (FOLDER is run.dir, `runs` by default) with recipe, log, export and result for
    each seed N; stacked seeds have their checkpoints and a log of all in FOLDER/RECIPE-ensembleSEEDS. `{seed}` in
    init_from and transfer.sources stands for N. See docs/language.md.
    """

    seeds: tuple[int, ...] = option("the seeds: 0-9, or 0,2,5", form="0-9")


def run(options: Options) -> None:
    """Train; prints the metrics of each seed."""
    if "seed" in options.overrides:
        raise UserError("seed= is for one run; an ensemble takes seeds=")
    from vitwarm.recipe import load_recipe

    config = load_recipe(options.recipe_words)
    from vitwarm.signals import stop_signals

    with stop_signals() as stop:
        from vitwarm.run import run_ensemble  # imports torch: only once the recipe is known to be good
        from vitwarm.seed_runs import run_seeds
        from vitwarm.training.processes import trains_on_gpu

        if trains_on_gpu():
            results = run_ensemble(config, options.seeds, stop)
        else:
            results = run_seeds(config, options.recipe, options.overrides, options.seeds, stop)
    for result in results:
        shown = ", ".join(f"{k} {v:.4f}" for k, v in result["metrics"].items() if k != "count")
        print(f"seed {result['seed']}: {shown}")
