"""`vitwarm lab`."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from vitwarm.cli.words import flag, listing, option, rest, typed
from vitwarm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Carry out a plan of the laboratory of tiny decoders, or resume it, and write its report.

    Each cell is one process; docs/lab.md explains plans.
    """

    plan: str = option("a shipped plan (plan=list lists them) or a YAML file", form="NAME")
    out: Path | None = option("folder of the plan; runs/lab/NAME if not given", None, form="FOLDER")
    runs: Path | None = option(
        "folder of the run folders; OUT/runs if not given. Plans that share it share their common cells",
        None,
        form="FOLDER",
    )
    jobs: int = option("cells at once on this machine", 1, within="[1, inf)")
    overrides: dict[str, str] = rest(
        "key=value", "seeds of all cells (seeds=0-9), or a key of every run's recipe (run.log_every=500)", empty=True
    )
    dry_run: bool = flag("only print the cells, what they take, and how far they are")
    report: bool = flag("only write the report of what is finished")
    words: tuple[str, ...] = typed()


def run(options: Options) -> None:
    """Carry out, report; or only one of them."""
    from vitwarm.lab.plan import find_lab, list_labs, read_lab

    if options.plan == "list":
        print(listing(list_labs()))
        return
    if options.dry_run and options.report:
        raise UserError("--dry-run lists the cells and --report writes the report; give one of them")
    plan = read_lab(find_lab(options.plan), options.overrides)
    from vitwarm.budget.launch import Launch
    from vitwarm.lab.folder import LabFolder  # imports torch: only once the plan is known to be good
    from vitwarm.signals import stop_signals

    launch = Launch(jobs=options.jobs, accelerate=None)
    study = LabFolder(plan, options.out or Path(f"runs/lab/{plan.name}"), launch, options.runs)
    if options.dry_run:
        print(study.summary())
        return
    if not options.report:
        with stop_signals() as stop:
            study.run(stop)
    print(study.report(shlex.join(["vitwarm", "lab", *options.words])))
    if not options.report:
        study.require_whole()
