"""`vitwarm inspect`."""

import math
from dataclasses import dataclass
from pathlib import Path

from vitwarm.cli.rules import read_rule, rule_list
from vitwarm.cli.words import flag, option, rest


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a warm-up left in a trunk, block by block.

    Entropy of each attention head, size and spectrum of each matrix.
    """

    export: str = option(
        "run, export or GPT-2 folder, or timm:NAME (fresh); a run's export comes before its warm-up: RUN/warmup",
        form="RUN",
    )
    vs: str | None = option("another one, drawn beside it", None, form="RUN")
    rule: str = option("rule whose held-out sequences are read; of a decoder, name the rule of its warm-up", "dyck")
    length: int | None = option("tokens in a sequence", None, within="[1, inf)")
    lowest: int | None = option(
        "how many heads to name as the groups of a transfer; a quarter of them if not given", None, within="[1, inf)"
    )
    png: Path | None = flag("also draw a page of figures", form="FILE.png", bare="trunk.png", suffix=".png")
    parameters: dict[str, str] = rest("PARAMETER=VALUE", "a parameter of the rule", explain=rule_list)


def run(options: Options) -> None:
    """Inspect; prints a table for each trunk, draws the page."""
    rule = read_rule(options.rule, options.parameters)
    from vitwarm.analysis.inspection import inspect_trunk
    from vitwarm.analysis.page import plot, table
    from vitwarm.exports.opening import open_model

    opened = {place: open_model(place) for place in filter(None, (options.export, options.vs))}
    # a ViT's symbols come through the frozen stem of its warm-up, which follows from the seed
    found = {}
    for place, it in opened.items():
        how = {"seed": it.config.seed, "middle_runs": it.config.warmup.middle_runs}
        found[place] = inspect_trunk(it.model, rule, length=options.length, **how)
    for place, one in found.items():
        count = options.lowest or math.ceil(one.entropy.size / 4)
        print(f"{place}\n\n{table(one)}\n\nlowest entropy: {one.lowest(count)}\n")
    if options.png is not None:
        short = {"/".join(Path(p).parts[-2:]): one for p, one in found.items()}
        title = f"Attention on 64 held-out sequences of {rule.spec()['name']}."
        plot(short if len(short) == len(found) else found, options.png, title)
        print(f"written: {options.png}")
