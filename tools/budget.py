"""python tools/budget.py plan=NAME|PATH [out=FOLDER] [jobs=N] [accelerate="..."] [key=value ...] [--dry-run | --report]

Carry out a plan of a data-efficiency study, or go on with it, and write its report; docs/budgets.md explains plans.

  plan          a shipped plan (recipes/budgets) or a YAML file; plan=list lists the shipped ones
  out           folder of the study; runs/budget/NAME by default
  runs          folder of the run folders; out/cells by default. Plans that share it share their common cells
  executor      local (default) or slurm
  jobs          cells at once on this machine; 1 by default
  accelerate    further arguments of `accelerate launch`: "--multi_gpu --num_processes 8"
  submit.KEY    a parameter of submitit: submit.slurm_partition=gpu submit.gpus_per_node=8
  key=value     a key of the plan (seeds=0,1,2) or of every cell's recipe (images.train=/data/train)
  --dry-run     only print the cells, what they take at a measured speed, and how far they are
  --report      only write the report of what is finished
"""

import shlex
import sys
from pathlib import Path

from vitwarm.cli import guarded, listing
from vitwarm.errors import UserError

OWN = ("plan", "out", "runs", "executor", "jobs", "accelerate")
FLAGS = ("--dry-run", "--report")


def main(arguments: list[str]) -> None:
    """Read the command line; all that is not the tool's own goes into the plan."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__.strip())
        return
    own, submit, overrides = {}, {}, {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if argument in FLAGS:
            continue
        if not equals or argument.startswith("-"):
            raise UserError(f"cannot use {argument!r}; see --help")
        if key in OWN:
            own[key] = value
        elif key.startswith("submit."):
            submit[key.removeprefix("submit.")] = int(value) if value.isdecimal() else value
        else:
            overrides[key] = value
    if "plan" not in own:
        raise UserError("say which plan: plan=NAME (plan=list lists the shipped ones) or plan=PATH.yaml")
    from vitwarm.budget.launch import Launch
    from vitwarm.budget.plan import find_plan, list_plans, read_plan

    if own["plan"] == "list":
        print(listing(list_plans()))
        return
    jobs = own.get("jobs", "1")
    if own.get("executor", "local") not in ("local", "slurm") or not jobs.isdecimal() or jobs == "0":
        raise UserError("executor is local or slurm, jobs a whole number of at least 1")
    plan = read_plan(find_plan(own["plan"]), overrides)
    launch = Launch(own.get("executor", "local"), int(jobs), own.get("accelerate", ""), submit)
    out = Path(own.get("out", f"runs/budget/{plan.name}")).expanduser()
    from vitwarm.study import StudyFolder  # imports torch: only once the plan is known to be good
    from vitwarm.training.signals import stop_signals

    study = StudyFolder(plan, out, launch, Path(own["runs"]).expanduser() if "runs" in own else None)
    if "--dry-run" in arguments:
        study.measure_rates()
        print(study.summary())
        return
    if "--report" not in arguments:
        with stop_signals() as stop:
            study.run(stop)
    command = shlex.join(["python", "tools/budget.py", *(a for a in sys.argv[1:] if a not in FLAGS)])
    print(study.report(command))


if __name__ == "__main__":
    guarded(main)()
