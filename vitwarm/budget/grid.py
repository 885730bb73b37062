"""The cells of a plan: each an ordinary recipe with a hash; keys that the plan does not vary are equal in all."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vitwarm.amounts import Amount
from vitwarm.budget.cells import DONE, MARKS, WAITING, Status, counts, folder_of
from vitwarm.budget.comparable import ARM_KEYS
from vitwarm.budget.metrics import measured
from vitwarm.budget.plan import UNITS, Plan
from vitwarm.budget.runs import Run, is_finite
from vitwarm.checks import LENGTHS, MAIN_STAGES, differences, main_stage, starts_from_given, value_of, warms_up
from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.recipe import load_recipe, recipe_hash

WARMUP = "warmup"


@dataclass(frozen=True)
class Work:
    """The work of a stage, without its evaluations; `device_seconds` is None where no rate is known.

    Attributes:
        evaluation: FLOPs of the stage's evaluations, as a share of its training FLOPs.
    """

    steps: float
    samples: float
    tokens: float
    flops: float
    device_seconds: float | None = None
    evaluation: float = 0.0

    def scaled(self, share: float) -> "Work":
        """The same work for a share of the steps; evaluations remain the same share of it."""
        steps, samples, tokens, flops = (share * n for n in (self.steps, self.samples, self.tokens, self.flops))
        seconds = None if self.device_seconds is None else share * self.device_seconds
        return Work(steps, samples, tokens, flops, seconds, self.evaluation)

    @property
    def seconds_in_all(self) -> float | None:
        """Device-seconds with the evaluations, which are taken to run at the same FLOP/s."""
        return None if self.device_seconds is None else self.device_seconds * (1 + self.evaluation)


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
        budget: share of the full main stage, as in the plan.
        main: share that the main stage takes; below `budget` where the warm-up is paid from it.
        config: the resolved recipe.
        hash: its name; a finished run with this hash is this cell, whatever its folder is called.
        arguments: the command line that gives the recipe.
        folder: run folder of the cell.
        work: stage -> what it will take from the checkpoint on that it needs.
        needs: checkpoint of the full run that this one resumes from: where its warm-up ended, or where it branches off.
        trunk: hash of the cell whose main stage this one branches off; None for a main stage of its own.
    """

    arm: str
    budget: float
    seed: int
    main: float
    config: Config
    hash: str
    arguments: tuple[str, ...]
    folder: Path
    work: dict[str, Work]
    needs: Path | None = None
    trunk: str | None = None

    @property
    def title(self) -> str:
        return f"{self.arm} at {100 * self.budget:g} %, seed {self.seed}"

    def ready(self) -> bool:
        """Whether the full run has left the checkpoint that it resumes from."""
        return self.needs is None or (self.needs / "state.json").is_file()


@dataclass(frozen=True)
class Grid:
    """The cells of a plan in the order in which they are carried out.

    Attributes:
        stage: the main stage.
        work: arm -> stage -> what it takes at the full budget.
        warnings: lines for the plan's author, before it runs.
    """

    plan: Plan
    cells: list[Cell]
    stage: str
    work: dict[str, dict[str, Work]]
    warnings: list[str] = field(default_factory=list)

    def warmup_share(self, arm: str) -> float:
        """The warm-up as a share of the full main stage, in the plan's unit."""
        return warmup_share(self.plan.unit, self.work[arm], self.stage)

    def unusable(self, run: Run) -> str:
        """The reason why the numbers of a finished run cannot be used, or an empty string."""
        if self.stage not in run.result["stages"]:
            return f"result.json has no stage {self.stage}"
        value = run.result["metrics"].get(self.plan.metric)
        if not is_finite(value):
            return f"result.json has no finite {self.plan.metric}"
        cell = next(cell for cell in self.cells if cell.hash == run.hash)
        planned = cell.main * self.work[cell.arm][self.stage].samples
        seen = run.result["stages"][self.stage]["samples"]
        if self.stage == "images" and abs(seen - planned) > 2 * cell.config.train.global_batch:  # of steps, rounded
            return f"it was trained on {seen:,} images, the plan counts on {planned:,.0f}; set train_images as they are"
        return ""

    def progress(self, statuses: dict[str, Status]) -> str:
        """The table of progress, with one mark for each seed."""
        width = max(map(len, self.plan.arms))
        heads = [f"{100 * budget:g}%" for budget in self.plan.budgets]
        column = max(len(self.plan.seeds), *map(len, heads)) + 2
        by_place: dict[tuple[str, float], str] = {}
        for cell in self.cells:
            place = cell.arm, cell.budget
            by_place[place] = by_place.get(place, "") + MARKS[statuses[cell.hash].state]
        lines = ["".join([" " * width, *(head.rjust(column) for head in heads)])]
        for arm in self.plan.arms:
            lines.append(arm.ljust(width) + "".join(by_place[arm, b].rjust(column) for b in self.plan.budgets))
        return "\n".join([*lines, counts(statuses[cell.hash].state for cell in self.cells)])

    def check_needs(self, statuses: dict[str, Status]) -> None:
        """Check that finished full runs have left the checkpoints that shorter ones resume from.

        Raises:
            UserError: one has not.
        """
        for cell in self.cells:
            if cell.needs and not cell.needs.is_dir() and statuses[cell.hash].state == WAITING:
                whole = next(c for c in self.cells if c.folder == cell.needs.parent.parent)
                if statuses[whole.hash].state == DONE:
                    gone = f"{cell.title} resumes from {cell.needs}, which is missing"
                    raise UserError(f"{gone}; remove {whole.folder} to carry that run out again")


def required_stage(config: Config) -> str:
    """The main stage, which the budgets are about.

    Raises:
        UserError: the recipe has none.
    """
    if (stage := main_stage(config)) is None:
        asked = ", ".join(f"{name}.{section.asks}" for name, section in MAIN_STAGES.items())
        raise UserError(f"{config.name} has no main stage: set one of {asked}")
    return stage


def make_grid(plan: Plan, runs: Path, measure: Callable[[Config], dict[str, Work]]) -> Grid:
    """All cells of a plan, full budgets first, seed by seed.

    Args:
        plan: the plan.
        runs: folder of the run folders.
        measure: what each stage of an arm's full recipe takes.

    Raises:
        UserError: a recipe is wrong, arms differ in more than their start, or a budget cannot pay for its warm-up.
    """
    full = {name: plan.recipe_of(name) for name in plan.arms}
    baseline = full[plan.baseline]
    stage = required_stage(baseline)
    if not (known := measured(baseline, stage)):
        raise UserError(f"plan {plan.name}: its runs measure nothing without validation images; set images.val")
    if plan.metric not in known:
        names = ", ".join(sorted(known))
        raise UserError(f"plan {plan.name}: a run on {stage} gives no {plan.metric}; set metric to one of {names}")
    for name in plan.others:
        _check_arm(plan, name, baseline, full[name])
    work = {}
    for name, config in full.items():
        if starts_from_given(config):
            raise UserError(
                f"plan {plan.name}: arm {name} starts from init_from or transfer.sources, and what that cost is not "
                "known here; use a recipe with its own warm-up"
            )
        work[name] = measure(config)
        _check_length(plan, name, work[plan.baseline][stage].samples, work[name][stage].samples, config)
    by_hash: dict[str, Cell] = {}
    full_runs: dict[tuple[str, int], Cell] = {}
    for budget in reversed(plan.budgets):
        for seed in plan.seeds:
            for name in plan.arms:
                cell = _cell(plan, name, budget, seed, runs, stage, work[name], full_runs.get((name, seed)))
                if twin := by_hash.get(cell.hash):
                    raise UserError(f"plan {plan.name}: {twin.title} and {cell.title} are the same recipe")
                by_hash[cell.hash] = cell
                full_runs.setdefault((name, seed), cell)
    return Grid(plan, list(by_hash.values()), stage, work, _warnings(plan, baseline))


def warmup_share(unit: str, work: dict[str, Work], stage: str) -> float:
    """The warm-up as a share of the full main stage.

    Raises:
        UserError: device-seconds, and no rate was measured.
    """
    if WARMUP not in work:
        return 0.0
    warmup, main = (getattr(work[name], unit) for name in (WARMUP, stage))
    if warmup is None or not main:
        raise UserError(f"no measured rate to count {UNITS[unit]} by; start with --dry-run where the data is")
    return warmup / main


def _check_arm(plan: Plan, name: str, baseline: Config, config: Config) -> None:
    for key, (theirs, ours) in differences(baseline, config, (*ARM_KEYS, *plan.tuned)).items():
        raise UserError(
            f"plan {plan.name}: arm {name} differs from {plan.baseline} in {key} ({ours!r} against {theirs!r}); "
            "arms may differ only in how the trunk starts, and in keys that the plan names under tuned"
        )


def _check_length(plan: Plan, name: str, baseline: float, own: float, config: Config) -> None:
    if abs(own - baseline) > config.train.global_batch:  # a step that is not full
        raise UserError(
            f"plan {plan.name}: at the full budget arm {name} sees {own:,.0f} samples, {plan.baseline} "
            f"{baseline:,.0f}; a budget is a share of one length, so take what sets them apart out of tuned"
        )


def _cell(
    plan: Plan, name: str, budget: float, seed: int, runs: Path, stage: str, work: dict[str, Work], whole: Cell | None
) -> Cell:
    """A cell; `whole` is the one at the full budget, None for that one itself.

    Shorter runs of an arm and seed are the full one until its main stage begins, and branches for longer; they resume
    from its checkpoints, and end with bits equal to those of a run of their own.
    """
    main = _main_share(plan, name, budget, work, stage)
    config, more = plan.recipe_of(name), []
    warmup = round(work[WARMUP].steps) if WARMUP in work else 0
    if warmup and Amount.parse(config.warmup.budget, "warmup.budget").unit == "%":
        more.append(f"warmup.budget={warmup} steps")  # the same at every budget
    if main < 1:
        more.append(f"{LENGTHS[stage]}={_length(config, stage, main)}")
    branched = plan.points == "branched"
    if branched:
        _check_branched(plan, config)
        lr_warmup = Amount.parse(config.train.lr_warmup, "train.lr_warmup")
        if lr_warmup.unit == "%":
            more.append(f"train.lr_warmup={lr_warmup.steps(steps_of_whole=round(work[stage].steps))} steps")

    def leaves(share: float) -> int:
        """The step of the main stage at which a run of that share leaves the full one."""
        return _branch_step(plan, config, share, work[stage].steps) if branched else 0

    taken = {s: w.scaled(main) if s == stage else w for s, w in work.items()}
    needs = None
    if whole is None:
        steps = {warmup + leaves(_main_share(plan, name, b, work, stage)) for b in plan.budgets[:-1]}
        steps.add(warmup)  # for a plan with more budgets, which takes over this run
        if kept := sorted(steps - {0}):
            more.append(f"run.keep_at={kept}")
    elif step := leaves(main) + warmup:
        needs = whole.folder / "checkpoints" / f"step-{step:08d}"
        more.append(f"resume_from={needs}")
        taken = {stage: work[stage].scaled(main - leaves(main) / work[stage].steps)}
    arguments = plan.arguments(name, seed, *more)
    config = load_recipe(list(arguments))
    digest = recipe_hash(config)
    folder = folder_of(runs, f"{name}-{100 * budget:g}", seed, digest)
    trunk = whole.hash if branched and whole else None
    return Cell(name, budget, seed, main, config, digest, arguments, folder, taken, needs, trunk)


def _main_share(plan: Plan, name: str, budget: float, work: dict[str, Work], stage: str) -> float:
    """What a budget leaves to the main stage, as a share of the full one."""
    if plan.setting == "additive":
        return budget
    warmup = warmup_share(plan.unit, work, stage)
    if budget <= warmup:
        raise UserError(
            f"plan {plan.name}: at {100 * budget:g}% nothing is left for the main stage of arm {name}, whose warm-up "
            f"takes {100 * warmup:.3g} % of the full budget; raise the smallest of budgets"
        )
    return budget - warmup


def _check_branched(plan: Plan, config: Config) -> None:
    if config.train.schedule != "wsd":
        raise UserError(f"plan {plan.name}: points: branched needs train.schedule: wsd in set")
    if Amount.parse(config.train.cooldown, "train.cooldown").unit not in ("%", "steps"):
        raise UserError(f"plan {plan.name}: for branches write train.cooldown as a share or in steps")


def _branch_step(plan: Plan, config: Config, main: float, steps: float) -> int:
    """The step of the main stage at which a run of that share leaves the trunk: just before it cools down."""
    cooldown = Amount.parse(config.train.cooldown, "train.cooldown")
    step = math.floor(main * steps) - cooldown.steps(steps_of_whole=math.ceil(main * steps)) - 1  # 1: rounding
    if step < 1:
        raise UserError(f"plan {plan.name}: {100 * main:.3g}% is no longer than train.cooldown={config.train.cooldown}")
    return step


def _length(config: Config, stage: str, share: float) -> str:
    """The main stage's length at a share of it, as the recipe writes it."""
    value = value_of(config, LENGTHS[stage])
    if stage == "images":
        return f"{share * value:.8g}"
    amount = Amount.parse(value, LENGTHS[stage])
    scaled = share * float(amount.value)
    return f"{scaled:.8g} epochs" if amount.unit == "epochs" else f"{max(1, round(scaled))} {amount.unit}"


def _warnings(plan: Plan, config: Config) -> list[str]:
    found = []
    lr_warmup = Amount.parse(config.train.lr_warmup, "train.lr_warmup")
    if plan.points == "scheduled" and len(plan.budgets) > 1 and lr_warmup.value and lr_warmup.unit != "%":
        found.append(
            f"train.lr_warmup is {config.train.lr_warmup}, which shorter runs keep: it is a larger part of them. "
            "A share in the plan's set (train.lr_warmup: 10%) would shrink with the run."
        )
    if warms_up(config):
        found.append(f"The baseline {plan.baseline} has a warm-up too; it is counted, but not compared with none.")
    return found
