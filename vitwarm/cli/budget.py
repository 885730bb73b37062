"""`vitwarm budget`."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitwarm.cli.words import flag, listing, option, rest, typed
from vitwarm.errors import UserError
from vitwarm.files import expanded


@dataclass(frozen=True, kw_only=True)
class Options:
    """Carry out a plan of a data-efficiency study, or resume it, and write its report.

    docs/budgets.md explains plans.
    """

    plan: str = option(
        "a shipped plan (plan=list lists them), a YAML file, or with --report a study.json to write its report again",
        form="NAME",
    )
    out: Path | None = option("folder of the study; runs/budget/NAME if not given", None, form="FOLDER")
    runs: Path | None = option(
        "folder of the run folders; OUT/cells if not given. Plans that share it share their common cells",
        None,
        form="FOLDER",
    )
    executor: Literal["local", "slurm"] = option("where cells run", "local")
    jobs: int = option("cells at once on this machine", 1, within="[1, inf)")
    accelerate: str = option('further arguments of `accelerate launch`: "--multi_gpu --num_processes 8"', "")
    submit: dict[str, str] = rest(
        "submit.KEY=value",
        "a parameter of submitit: submit.slurm_partition=gpu submit.gpus_per_node=8",
        prefix="submit.",
    )
    overrides: dict[str, str] = rest(
        "key=value",
        "a key of the plan (seeds=0,1,2) or of every cell's recipe (images.train=/data/train)",
        empty=True,
    )
    dry_run: bool = flag("only print the cells, what they take at a measured speed, and how far they are")
    report: bool = flag("only write the report of what is finished")
    words: tuple[str, ...] = typed()


def run(options: Options) -> None:
    """Carry out, report; or only one of them."""
    from vitwarm.budget.launch import Launch
    from vitwarm.budget.plan import find_plan, list_plans, read_plan

    if options.plan == "list":
        print(listing(list_plans()))
        return
    if options.dry_run and options.report:
        raise UserError("--dry-run lists the cells and --report writes the report; give one of them")
    if (numbers := expanded(options.plan)).suffix == ".json":
        _report_again(numbers, options)
        return
    plan = read_plan(find_plan(options.plan), options.overrides)
    submit = {key: int(value) if value.isdecimal() else value for key, value in options.submit.items()}
    launch = Launch(options.executor, options.jobs, options.accelerate, submit)
    from vitwarm.signals import stop_signals
    from vitwarm.study import StudyFolder  # imports torch: only once the plan is known to be good

    out = options.out or Path(f"runs/budget/{plan.name}")
    study = StudyFolder(plan, out, launch, options.runs, measure=not options.report)
    if options.dry_run:
        study.measure_rates()
        print(study.summary())
        return
    if not options.report:
        with stop_signals() as stop:
            study.run(stop)
    print(study.report(shlex.join(["vitwarm", "budget", *options.words])))
    if not options.report:
        study.require_whole()


def _report_again(numbers: Path, options: Options) -> None:
    """Write the pages and figures of an earlier report from its numbers, without its runs."""
    from vitwarm.budget.efficiency import read_study
    from vitwarm.budget.report import write_report
    from vitwarm.budget.wording import headline

    if not options.report or options.overrides:
        raise UserError(f"plan={numbers} holds the numbers of a report: write only --report, and out=FOLDER, beside it")
    study = read_study(numbers)
    files = write_report(study, options.out or numbers.parent)
    print(f"{headline(study)}\nwritten: {files[0]}")
