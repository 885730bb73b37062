"""The cells of a plan: each an ordinary recipe with a hash, all alike in whatever the plan does not vary."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vitwarm.amounts import Amount
from vitwarm.budget.compare import ARM_KEYS
from vitwarm.budget.plan import UNITS, Arm, Plan, override
from vitwarm.checks import LENGTHS, differences, value_of, warms_up
from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.recipe import load_recipe, recipe_hash

WARMUP = "warmup"
_OURS = ("seed", "run.dir", "resume_from")  # set for each cell by the grid


@dataclass(frozen=True)
class Work:
    """What a stage takes; `device_seconds` is None where no rate is known."""

    steps: float
    samples: float
    tokens: float
    flops: float
    device_seconds: float | None = None

    def scaled(self, share: float) -> "Work":
        seconds = None if self.device_seconds is None else share * self.device_seconds
        return Work(share * self.steps, share * self.samples, share * self.tokens, share * self.flops, seconds)


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
        budget: as a share of the full main stage, as the plan says it.
        main: share that the main stage takes; below `budget` where the warm-up is paid from it.
        config: the resolved recipe.
        hash: its name; a finished run with this hash is this cell, whatever its folder is called.
        arguments: the command line that gives the recipe.
        folder: where it runs.
        work: stage -> what it will take.
        trunk: hash of the cell whose trunk this one branches off; None for a run of its own.
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
    trunk: str | None = None

    @property
    def title(self) -> str:
        return f"{self.arm} at {100 * self.budget:g} %, seed {self.seed}"


@dataclass(frozen=True)
class Grid:
    """The cells of a plan in the order in which they are carried out.

    Attributes:
        stage: the main stage.
        work: arm -> stage -> what it takes at the full budget.
        warnings: what the plan's author should know before it runs.
    """

    plan: Plan
    cells: list[Cell]
    stage: str
    work: dict[str, dict[str, Work]]
    warnings: list[str] = field(default_factory=list)

    def warmup_share(self, arm: str) -> float:
        """The warm-up as a share of the full main stage, in the plan's unit."""
        return warmup_share(self.plan.unit, self.work[arm], self.stage)


def main_stage(config: Config) -> str:
    """The stage that the budgets are about.

    Raises:
        UserError: the recipe has none.
    """
    for stage, asked in (
        ("images", config.images.train and config.images.epochs),
        ("algorithmic", config.algorithmic.task),
        ("text", config.text.train),
    ):
        if asked:
            return stage
    raise UserError(f"{config.name} has no main stage: set images.train, algorithmic.task or text.train")


def make_grid(plan: Plan, runs: Path, measure: Callable[[Config], dict[str, Work]]) -> Grid:
    """All cells of a plan, full budgets first, seed by seed.

    Args:
        plan: the plan.
        runs: folder of the run folders.
        measure: what each stage of a recipe takes.

    Raises:
        UserError: a recipe is wrong, arms differ in more than their start, or a budget cannot pay for its warm-up.
    """
    full = {name: _load(plan, arm, plan.seeds[0]) for name, arm in plan.arms.items()}
    baseline = full[plan.baseline]
    stage = main_stage(baseline)
    for name in plan.others:
        _check_arm(plan, name, baseline, full[name])
    work = {}
    for name, config in full.items():
        if config.init_from:
            raise UserError(
                f"plan {plan.name}: arm {name} starts from init_from, and what that cost is not known here; "
                "use a recipe with its own warm-up"
            )
        work[name] = measure(config)
    cells = [
        _cell(plan, name, budget, seed, runs, stage, work[name])
        for budget in reversed(plan.budgets)
        for seed in plan.seeds
        for name in plan.arms
    ]
    by_hash: dict[str, Cell] = {}
    for cell in cells:
        if cell.hash in by_hash:
            raise UserError(f"plan {plan.name}: {by_hash[cell.hash].title} and {cell.title} are the same recipe")
        by_hash[cell.hash] = cell
    return Grid(plan, cells, stage, work, _warnings(plan, baseline))


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


def _load(plan: Plan, arm: Arm, seed: int, *more: str) -> Config:
    return load_recipe(list(_arguments(plan, arm, seed, *more)))


def _arguments(plan: Plan, arm: Arm, seed: int, *more: str) -> tuple[str, ...]:
    for key in (*plan.set, *arm.set):
        if key in _OURS:
            raise UserError(f"plan {plan.name}: {key} belongs to the grid; leave it out of set")
    settings = plan.set | arm.set
    return (f"recipe={arm.recipe}", *(override(k, v) for k, v in settings.items()), f"seed={seed}", *more)


def _check_arm(plan: Plan, name: str, baseline: Config, config: Config) -> None:
    for key, (theirs, ours) in differences(baseline, config, ARM_KEYS).items():
        raise UserError(
            f"plan {plan.name}: arm {name} differs from {plan.baseline} in {key} ({ours!r} against {theirs!r}); "
            "arms may differ only in how the trunk starts"
        )


def _cell(plan: Plan, name: str, budget: float, seed: int, runs: Path, stage: str, work: dict[str, Work]) -> Cell:
    arm, main = plan.arms[name], budget
    if plan.setting == "substitutive":
        main = budget - warmup_share(plan.unit, work, stage)
        if main <= 0:
            raise UserError(
                f"plan {plan.name}: at {100 * budget:g}% nothing is left for the main stage of arm {name}, whose warm-up "
                f"takes {100 * (budget - main):.3g} % of the full budget; raise the smallest of budgets"
            )
    more = []
    config = _load(plan, arm, seed)
    if WARMUP in work and Amount.parse(config.warmup.budget, "warmup.budget").unit == "%":
        more.append(f"warmup.budget={round(work[WARMUP].steps)} steps")  # the same at every budget
    if main < 1:
        more.append(f"{LENGTHS[stage]}={_length(config, stage, main)}")
    arguments = _arguments(plan, arm, seed, *more)
    config = load_recipe(list(arguments))
    digest = recipe_hash(config)
    folder = runs / f"{name}-{100 * budget:g}-seed{seed}-{digest[:6]}"
    taken = {s: w.scaled(main) if s == stage else w for s, w in work.items()}
    return Cell(name, budget, seed, main, config, digest, arguments, folder, taken)


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
    unit = Amount.parse(config.train.lr_warmup, "train.lr_warmup").unit
    if plan.points == "scheduled" and len(plan.budgets) > 1 and unit != "%":
        found.append(
            f"train.lr_warmup is {config.train.lr_warmup}, which shorter runs keep: it is a larger part of them. "
            "A share in the plan's set (train.lr_warmup: 10%) would shrink with the run"
        )
    if warms_up(config):
        found.append(
            f"the baseline {plan.baseline} has a warm-up of its own; it is counted, but not compared with none"
        )
    return found
