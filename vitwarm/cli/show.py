"""`vitwarm show`."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from vitwarm.cli.rules import read_rule, rule_list
from vitwarm.cli.words import flag, option, rest
from vitwarm.errors import UserError
from vitwarm.plotting import load_matplotlib

_MOST = 1_000_000  # tokens: all are held in memory


@dataclass(frozen=True, kw_only=True)
class Options:
    """Show sequences of a rule on the terminal, and as an image.

    Hidden positions are marked ? where they are determined and ~ where they are not.
    A rule of rules is written as JSON: rule='{"name": "shuffled", "rule": {"name": "dyck", "k": 4}}'.
    """

    rule: str = option("a rule", form="NAME")
    length: int | None = option("tokens in a sequence; by the rule if not given", None, within="[1, inf)")
    count: int = option("sequences", 3, within="[1, inf)")
    seed: int = option("seed of the sequences", 0, within="[0, inf)")
    mask: float = option("share of the eligible positions that are hidden", 0.5, within="[0, 1]")
    png: Path | None = flag("also draw them, into this file", form="FILE.png", suffix=".png")
    parameters: dict[str, str] = rest("PARAMETER=VALUE", "a parameter of the rule", explain=rule_list)


def run(options: Options) -> None:
    """Print the sequences, draw them."""
    if options.png is not None and not options.png.parent.is_dir():
        raise UserError(f"--png {options.png}: there is no folder {options.png.parent}; make it first")
    from vitwarm.procedural import RuleStream
    from vitwarm.procedural.show import natural_length, render

    rule = read_rule(options.rule, options.parameters)
    length = options.length or natural_length(rule)
    if options.count * length > _MOST:
        raise UserError(f"{options.count:,} sequences of {length:,} tokens are more than {_MOST:,}; show fewer")
    try:
        stream = RuleStream(rule, options.seed, "train", length)
        rows = stream.rows(0, options.count)
        masked = stream.masked_rows(0, options.count, options.mask).masked
    except ValueError as error:  # a length that the rule cannot have
        raise UserError(str(error)) from error
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(render(rule, rows, masked, shutil.get_terminal_size((120, 24)).columns, colour))
    if options.png is not None:
        load_matplotlib()
        from vitwarm.analysis.sequences import plot  # imports matplotlib

        plot(rule, rows, masked, options.png)
        print(f"written: {options.png}")
