"""python tools/plan.py recipe=NAME gpus=8 device=h100 [mfu=0.4] [train_images=N] [key=value ...]: what a run will cost.

Samples, tokens, FLOPs, hours, storage and memory; needs neither a GPU nor the data.
"""

from vitwarm.cli import guarded
from vitwarm.errors import UserError

OWN = {"gpus": int, "device": str, "mfu": float, "train_images": int}


def main(arguments: list[str]) -> None:
    """Read the command line; all that is not the plan's own is the recipe and its overrides."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__.strip())
        return
    own, rest = {}, []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in OWN:
            rest.append(argument)
            continue
        if key in own:
            raise UserError(f"{key}= stands twice")
        try:
            own[key] = OWN[key](value)
        except ValueError:
            raise UserError(f"{key} is a number, not {value!r}") from None
    if not {"gpus", "device"} <= own.keys():
        raise UserError("say on what: gpus=8 device=h100")
    from vitwarm.recipe import load_recipe

    config = load_recipe(rest)
    from vitwarm.cost import estimate  # imports torch: only once the recipe is known to be good

    print(estimate(config, **own))


if __name__ == "__main__":
    guarded(main)()
