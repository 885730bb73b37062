"""python tools/inspect_trunk.py export=RUN [vs=RUN] [rule=dyck] [k=16 ...] [length=N] [lowest=N] [--png [FILE]]

What a warm-up left in a trunk, block by block: entropy of each attention head, size and spectrum of each matrix.

  export    run, export or GPT-2 folder, or timm:NAME (fresh); a run's export comes before its warm-up: RUN/warmup
  vs        another one, drawn beside it
  rule      whose held-out rows are read, and its parameters; a decoder reads the rule that it learnt
  --png     a page of pictures, trunk.png if it has no name
  lowest    how many heads to name as the groups of a transfer (a quarter of them)
"""

import math
from pathlib import Path

from vitwarm.cli import guarded
from vitwarm.errors import UserError


def main(arguments: list[str]) -> None:
    """Read the command line, inspect, print the table, draw the page."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__.strip())
        return
    png = None
    if "--png" in arguments:
        place = arguments.index("--png")
        named = arguments[place + 1 : place + 2]
        named = named if named and "=" not in named[0] else []
        png = Path(*named or ["trunk.png"]).expanduser()
        if png.suffix != ".png":
            raise UserError(f"--png writes a .png, not {png.name}")
        arguments = arguments[:place] + arguments[place + 1 + len(named) :]
    pairs = dict(a.split("=", 1) for a in arguments if "=" in a)
    if len(pairs) < len(arguments) or "export" not in pairs:
        raise UserError("write export=RUN and key=value, each key once; see --help")
    places = {name: pairs.pop(name) for name in ("export", "vs") if name in pairs}
    counts = {name: pairs.pop(name) for name in ("length", "lowest") if name in pairs}
    if bad := [f"{n}={v}" for n, v in counts.items() if not v.isdecimal() or not int(v)]:
        raise UserError(f"{bad[0]}: expected a whole number above 0")
    import yaml

    from vitwarm.analysis.inspection import inspect_trunk
    from vitwarm.analysis.page import draw, table
    from vitwarm.checks import rule_of
    from vitwarm.export.opening import open_model

    try:
        parameters = {n: yaml.safe_load(v) for n, v in pairs.items()}
    except yaml.YAMLError as error:
        raise UserError(f"a rule's parameter is no YAML: {' '.join(str(error).split())}") from error
    rule = rule_of({"name": pairs.pop("rule", "dyck")} | {n: v for n, v in parameters.items() if n != "rule"})
    length = int(counts["length"]) if "length" in counts else None
    opened = {place: open_model(place) for place in places.values()}
    # a ViT's symbols come through the frozen stem of its warm-up, which follows from the seed
    found = {p: inspect_trunk(o.model, rule, length=length, seed=o.config.seed) for p, o in opened.items()}
    for place, one in found.items():
        count = int(counts.get("lowest", math.ceil(one.entropy.size / 4)))
        print(f"{place}\n\n{table(one)}\n\nlowest entropy: {one.lowest(count)}\n")
    if png is not None:
        shown = {"/".join(Path(p).parts[-2:]): one for p, one in found.items()}
        draw(
            shown if len(shown) == len(found) else found,
            png,
            f"Attention on 64 held-out rows of {rule.spec()['name']}.",
        )
        print(f"written: {png}")


if __name__ == "__main__":
    guarded(main)()
