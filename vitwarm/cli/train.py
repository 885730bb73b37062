"""`vitwarm train`."""

from dataclasses import dataclass

from vitwarm.cli.guard import say
from vitwarm.cli.recipe_options import RecipeOptions
from vitwarm.cli.words import rest


def _keys() -> str:
    from vitwarm.recipe import help_text

    return help_text()


@dataclass(frozen=True, kw_only=True)
class Options(RecipeOptions):
    """Train a recipe, or resume its run.

    On several GPUs: accelerate launch -m vitwarm train recipe=NAME [key=value ...]
    """

    overrides: dict[str, str] = rest("key=value", "a key of the recipe; below", empty=True, explain=_keys)


def run(options: Options) -> None:
    """Train; prints the result and the run folder."""
    if options.recipe == "list":
        from vitwarm.cli.recipes import recipe_list

        say(recipe_list())
        return
    from vitwarm.recipe import load_recipe
    from vitwarm.signals import stop_signals

    config = load_recipe(options.recipe_words)
    with stop_signals() as stop:
        from vitwarm.result import summary  # imports torch: only once the recipe is known to be good
        from vitwarm.run import run
        from vitwarm.run_folder import run_folder

        result = run(config, stop)
    say(summary(result, run_folder(config)))
