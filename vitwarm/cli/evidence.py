"""`vitwarm evidence`."""

from dataclasses import dataclass
from pathlib import Path

from vitwarm.cli.words import option


@dataclass(frozen=True, kw_only=True)
class Options:
    """A page of what tools/gpu_evidence.sh has measured, from its JSON files."""

    out: Path = option("folder of the JSON files, which gets the page", form="FOLDER")


def run(options: Options) -> None:
    """Write the page; prints where."""
    from vitwarm.budget.evidence import write_evidence
    from vitwarm.errors import UserError

    if not options.out.is_dir():
        raise UserError(f"out: {options.out} is not a folder; give the one that tools/gpu_evidence.sh has written to")
    print(f"written: {write_evidence(options.out)[0]}")
