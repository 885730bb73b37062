"""`vitwarm plan`."""

from dataclasses import dataclass

from vitwarm.cli.recipe_options import RecipeOptions
from vitwarm.cli.words import option


@dataclass(frozen=True, kw_only=True)
class Options(RecipeOptions):
    """What a run will cost: samples, tokens, FLOPs, time, storage and memory.

    Needs no GPU, and of the data only text, which it counts.
    """

    gpus: int = option("devices, one process each")
    device: str = option("kind of device: h100, a100, l40s, ..., cpu_core", form="h100")
    mfu: float = option("assumed share of the device's peak that the model's FLOPs reach", 0.4)
    train_images: int | None = option("size of the training set, where it cannot be counted here", None)


def run(options: Options) -> None:
    """Print the estimate."""
    from vitwarm.recipe import load_recipe

    config = load_recipe(options.recipe_words)
    from vitwarm.cost import estimate  # imports torch: only once the recipe is known to be good

    print(estimate(config, options.gpus, options.device, options.mfu, options.train_images))
