"""The cells of a plan of the laboratory: runs of tasks, and before them the warm-ups that they start from."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vitwarm.budget.cells import Status, counts, folder_of
from vitwarm.budget.runs import WARMUP, Run, is_finite
from vitwarm.checks import main_stage
from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.lab.plan import NONE, LabPlan
from vitwarm.recipe import frozen_hash, load_recipe, recipe_hash
from vitwarm.run_folder import RECIPE, RESULT
from vitwarm.transfer.compose import Part, merge
from vitwarm.transfer.resize import resize
from vitwarm.trunk.decoder import Decoder, DecoderSize

STAGE, METRIC = "algorithmic", "accuracy"


@dataclass(frozen=True)
class Place:
    """Where a cell stands in the tables; `part` is `none` where there is no warm-up."""

    task: str
    warmup: str
    part: str
    setting: str


@dataclass(frozen=True)
class LabCell:
    """One run: a task, or a warm-up alone; see `vitwarm.budget.cells.Cell`.

    Attributes:
        needs: the warm-ups that it starts from.
        stage: the stage that it is for.
    """

    title: str
    seed: int
    config: Config
    hash: str
    arguments: tuple[str, ...]
    folder: Path
    needs: tuple["LabCell", ...]
    stage: str

    def ready(self) -> bool:
        """Whether the warm-ups that it starts from are finished, and are those of the plan."""
        return all(
            (warmup.folder / RESULT).is_file()
            and (recipe := warmup.folder / RECIPE).is_file()
            and frozen_hash(recipe) == warmup.hash
            for warmup in self.needs
        )


@dataclass(frozen=True)
class Lab:
    """The cells of a plan; see `vitwarm.budget.cells.Cells`.

    Attributes:
        cells: in the order in which they are carried out, a warm-up before the first cell that needs it.
        places: (place, seed) -> hash of its cell; equal recipes are one cell.
        warmups: hash of a task's cell -> its warm-ups' cells, by the groups that they give, or by "".
    """

    plan: LabPlan
    cells: list[LabCell]
    places: dict[tuple[Place, int], str]
    warmups: dict[str, dict[str, LabCell]]

    def unusable(self, run: Run) -> str:
        """The reason why the numbers of a finished run cannot be used, or an empty string."""
        if STAGE not in run.result["stages"] and WARMUP not in run.result["stages"]:
            return f"result.json has no stage {STAGE}"
        value = run.result["metrics"].get(METRIC) if STAGE in run.result["stages"] else 0.0
        if not is_finite(value):
            return f"result.json has no finite {METRIC}"
        return ""

    def progress(self, statuses: dict[str, Status]) -> str:
        """How many warm-ups and tasks are in each state."""
        return "\n".join(
            f"{name}: {counts(statuses[cell.hash].state for cell in self.cells if cell.stage == stage)}"
            for name, stage in (("warm-ups", WARMUP), ("tasks", STAGE))
            if any(cell.stage == stage for cell in self.cells)
        )

    def check_needs(self, statuses: dict[str, Status]) -> None:
        """Nothing: cells that wait for a warm-up that failed wait on, and the report says that it failed."""


def make_lab(plan: LabPlan, runs: Path) -> Lab:
    """All cells of a plan.

    Args:
        plan: the plan.
        runs: folder of the run folders.

    Raises:
        UserError: a recipe is wrong, or one is not what the plan takes it for.
    """
    return _Maker(plan, runs).lab


class _Maker:
    def __init__(self, plan: LabPlan, runs: Path):
        self.plan, self.runs = plan, runs
        self.recipes: dict[tuple[str, ...], Config] = {}  # of the first seed: reading one takes a while
        self.lab = Lab(plan, [], {}, {})
        self.known: dict[str, LabCell] = {}
        self.fitting: set[Place] = set()  # whose transfer was tried
        for place, seed in self._places():
            if (place, seed) not in self.lab.places:
                self.lab.places[place, seed] = self._task(place, seed).hash

    def _places(self) -> Iterator[tuple[Place, int]]:
        for block in self.plan.cells:
            for seed in block.seeds:
                for setting in block.settings:
                    for task in block.tasks:
                        for warmup in block.warmups:
                            for part in block.parts if warmup != NONE else (NONE,):
                                yield Place(task, warmup, part, setting), seed

    def _task(self, place: Place, seed: int) -> LabCell:
        plan = self.plan
        self._check_part(place)
        sources = {} if place.warmup == NONE else plan.warmups[place.warmup].sources or {"": place.warmup}
        warmups = {groups: self._warmup(name, place.setting, seed) for groups, name in sources.items()}
        words = plan.task_words(place.task, place.warmup, place.part, place.setting)
        cell = self._cell("-".join(vars(place).values()), words, seed, warmups, STAGE)
        self.lab.warmups[cell.hash] = warmups
        if warmups and place not in self.fitting:
            self._check_fit(cell, warmups)
            self.fitting.add(place)
        return cell

    def _check_part(self, place: Place) -> None:
        """Refuse keys that would make another part of one: the tables would show it under the part's name."""
        plan, setting = self.plan, self.plan.settings[place.setting]
        own = plan.parts[place.part].set if place.warmup != NONE else {}
        later = {f"settings.{place.setting}": {**setting.set, **setting.warmups.get(place.warmup, {})}}
        for where, keys in (later | {"the command line": plan.overrides}).items():
            if key := next((key for key in own if key in keys), None):
                raise UserError(
                    f"plan {plan.name}: {where} sets {key}, which is what parts.{place.part} stands for; add a part"
                )

    def _check_fit(self, cell: LabCell, warmups: dict[str, LabCell]) -> None:
        """Refuse what a run would refuse only when its warm-ups are trained: the same transfer, of fresh weights."""
        transfer, fit = cell.config.transfer, cell.config.transfer.fit
        size = self._size(cell)
        sizes = {groups: self._size(warmup) for groups, warmup in warmups.items()}
        if other := next((other for other in sizes.values() if fit == "exact" and other != size), None):
            raise UserError(
                f"plan {self.plan.name}: {cell.title}: the warm-up has model.decoder.size {other}, the task "
                f"{size}; set it in the plan's own set, or transfer.fit"
            )
        try:
            model, parts = _blocks(size, narrow=fit == "exact"), []
            for groups, other in sizes.items():
                tensors = _blocks(other, narrow=fit == "exact").state_dict()
                given = tensors if fit == "exact" else resize(tensors, model, fit, heads=other.heads, seed=0)
                parts.append(Part(groups.split() or transfer.groups, given, f"warm-up {warmups[groups].title}"))
            merge(model, parts, transfer.controls)
        except UserError as error:
            raise UserError(f"plan {self.plan.name}: {cell.title}: {error}") from error

    def _size(self, cell: LabCell) -> DecoderSize:
        try:
            return DecoderSize.parse(cell.config.model.decoder.size or "")
        except UserError as error:
            raise UserError(f"plan {self.plan.name}: {cell.title}: {error}") from error

    def _warmup(self, name: str, setting: str, seed: int) -> LabCell:
        return self._cell(f"warmup-{name}-{setting}", self.plan.warmup_words(name, setting), seed, {}, WARMUP)

    def _cell(self, name: str, words: list[str], seed: int, warmups: dict[str, LabCell], stage: str) -> LabCell:
        start = {groups: str(warmup.folder) for groups, warmup in warmups.items()}
        given = [f"init_from={start['']}"] if "" in start else []
        if start and not given:
            given = [
                "transfer.sources={" + ", ".join(f"{g}: {json.dumps(source)}" for g, source in start.items()) + "}"
            ]
        key = (*words, *(word.partition("=")[0] for word in given))
        if key not in self.recipes:
            self.recipes[key] = self._read(name, [*words, *given], stage)
            if not given and (self.recipes[key].init_from or self.recipes[key].transfer.sources):
                raise UserError(
                    f"plan {self.plan.name}: {name}: {words[0]} starts from given weights; name a recipe without"
                )
        config = self.recipes[key]
        sources = dict(start) if start and "" not in start else {}
        config = replace(config, seed=seed, init_from=start.get(""), transfer=replace(config.transfer, sources=sources))
        digest = recipe_hash(config)
        if digest not in self.known:
            title = f"{name.replace('-', ' · ')}, seed {seed}"
            folder = folder_of(self.runs, re.sub(r"[^A-Za-z0-9_.-]+", "_", name), seed, digest)
            arguments, needs = (*words, *given, f"seed={seed}"), tuple(warmups.values())
            self.known[digest] = LabCell(title, seed, config, digest, arguments, folder, needs, stage)
            self.lab.cells.append(self.known[digest])
        return self.known[digest]

    def _read(self, name: str, words: list[str], stage: str) -> Config:
        try:
            config = load_recipe(words)
            if main_stage(config) != (STAGE if stage == STAGE else None):
                raise UserError(f"{words[0]} is not of an algorithmic task")
        except UserError as error:
            raise UserError(f"plan {self.plan.name}: {name}: {error}") from error
        return config


def _blocks(size: DecoderSize, *, narrow: bool) -> Decoder:
    """A decoder whose blocks stand for those of a run; narrow ones do where all have one size, and take no time."""
    return Decoder(replace(size, width=size.heads) if narrow else size, vocab_size=1, n_positions=1)
