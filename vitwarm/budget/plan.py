"""A plan of a study: arms x budgets x seeds, and the effect to detect. One YAML file; data only, like a recipe."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from vitwarm.amounts import Amount
from vitwarm.budget.comparable import check_tuned
from vitwarm.budget.metrics import METRICS
from vitwarm.checks import SECTIONS, nearest
from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.files import expanded
from vitwarm.reading import read_yaml
from vitwarm.recipe import load_recipe, override_words, recipes_folder

SETTINGS = ("additive", "substitutive")
UNITS = {"samples": "samples", "tokens": "tokens", "flops": "FLOPs", "device_seconds": "device-seconds"}
POINTS = ("scheduled", "branched", "crossing")


@dataclass(frozen=True)
class Arm:
    """An arm: a recipe and the keys that the plan sets in it (full keys).

    Attributes:
        name: its key in the plan, part of the names of folders.
        label: its name in words, for the report; if empty, the key with spaces.
    """

    name: str
    recipe: str
    set: dict[str, Any] = field(default_factory=dict)
    label: str = ""


@dataclass(frozen=True)
class Published:
    """A published point: how much data matched the default's final value after how much warm-up.

    Attributes:
        label: whose point it is.
        warmup: size of the warm-up, per cent of the full budget.
        needed: size of the main stage, per cent of the full budget.
        source: the publication.
    """

    label: str
    warmup: float
    needed: float
    source: str


@dataclass(frozen=True)
class PublishedValue:
    """A published final value for an arm of the plan, at the full budget of its recipe.

    Attributes:
        label: whose value it is.
        arm: the arm of the plan that it corresponds to.
        metric: a key of `METRICS`; drawn where the plan asks for the same one.
        value: in the unit in which that metric is shown: per cent, nats.
        source: the publication.
    """

    label: str
    arm: str
    metric: str
    value: float
    source: str


@dataclass(frozen=True)
class Plan:
    """A plan, as its YAML file describes it; docs/budgets.md explains every key.

    Attributes:
        name: name of its file.
        arms: by name, the baseline first.
        budgets: shares of the full main stage in (0, 1], ascending, the last is 1.
        setting: additive (warm-up on top of the budget) or substitutive (the budget is the total).
        unit: what a budget and a warm-up are counted in.
        points: how runs of budgets below the full one are made: own schedules, branches of one trunk, or not at all.
        set: keys of every cell's recipe.
        overrides: keys of the command line, which count more than those of the plan and of its arms.
        tuned: keys beyond the start of the trunk in which arms may differ, such as a learning rate tuned for each.
        effect: smallest difference that matters, in units of the metric; the plan is judged by it.
        sd: standard deviation of paired differences, if known from earlier runs; for planning before the first run.
        train_images: size of the training set, where it cannot be counted here.
        published: points to draw beside ours.
    """

    name: str
    description: str
    arms: dict[str, Arm]
    baseline: str
    budgets: tuple[float, ...]
    seeds: tuple[int, ...]
    setting: str = "additive"
    unit: str = "samples"
    points: str = "scheduled"
    metric: str = "top1"
    set: dict[str, Any] = field(default_factory=dict)
    overrides: Mapping[str, str] = field(default_factory=dict)
    tuned: tuple[str, ...] = ()
    effect: float | None = None
    sd: float | None = None
    train_images: int | None = None
    published: tuple[Published | PublishedValue, ...] = ()

    @property
    def others(self) -> list[str]:
        """The arms to compare with the baseline."""
        return [name for name in self.arms if name != self.baseline]

    def arguments(self, arm: str, seed: int, *more: str) -> tuple[str, ...]:
        """The words that give an arm's recipe, each key once: of plan, arm, command line and `more` the last counts."""
        chosen = self.arms[arm]
        written = override_words(dict(_keys_of(self.set)), dict(_keys_of(chosen.set)), self.overrides)
        words: dict[str, str] = {}
        for word in (f"recipe={chosen.recipe}", *written, f"seed={seed}", *more):
            key = word.partition("=")[0]
            words.pop(key, None)  # so that the order is that of the words that count
            words[key] = word
        return tuple(words.values())

    def recipe_of(self, arm: str) -> Config:
        """The recipe of an arm at the full budget and the first seed.

        Raises:
            UserError: it cannot be.
        """
        try:
            return load_recipe(list(self.arguments(arm, self.seeds[0])))
        except UserError as error:
            raise UserError(f"plan {self.name}: arm {arm}: {error}") from error


_KEYS = {f.name for f in fields(Plan)} - {"name", "overrides"}
_COMMAND_LINE = "command line"
_OURS = ("recipe", "seed", "run.dir", "run.keep_at", "run.smoke", "resume_from")  # set for each cell
_PUBLISHED_NUMBERS = {"warmup", "needed", "value"}
_REQUIRED = ("arms", "budgets", "seeds")


def find_plan(name: str) -> Path:
    """The file of a plan: a path, or the name of a shipped one.

    Raises:
        UserError: there is none.
    """
    path = expanded(name)
    if name.endswith((".yaml", ".yml")):
        if path.is_file():
            return path
        raise UserError(f"no plan {path}; shipped plans: {', '.join(_shipped())}")
    if name not in _shipped():
        raise UserError(f"no plan named {name!r}{nearest(name, _shipped())}; shipped: {', '.join(_shipped())}")
    return _shipped()[name]


def list_plans() -> list[tuple[str, str]]:
    """The shipped plans as (name, one-line purpose)."""
    return [(name, str(read_yaml(path).get("description", ""))) for name, path in _shipped().items()]


def _shipped() -> dict[str, Path]:
    return {path.stem: path for path in sorted((recipes_folder() / "budgets").glob("*.yaml"))}


def read_plan(path: Path, overrides: dict[str, str] | None = None) -> Plan:
    """Read and check a plan.

    Args:
        path: the YAML file.
        overrides: overrides of keys of the plan, and of keys of all its recipes (`images.train`).

    Raises:
        UserError: the plan is malformed or impossible.
    """
    tree, given = read_yaml(path), dict(overrides or {})
    typed = _KEYS & given.keys()
    for key in typed:
        tree[key] = _value(key, given.pop(key))

    def where(key: str) -> str:
        return _COMMAND_LINE if key in typed else str(path)

    if unknown := sorted(map(str, tree.keys() - _KEYS)):
        raise UserError(f"{path}: unknown key {unknown[0]}{nearest(unknown[0], _KEYS)}")
    if missing := [key for key in _REQUIRED if not tree.get(key)]:
        raise UserError(f"{where(missing[0])}: {missing[0]} is missing or empty")
    arms = {str(name): _arm(path, str(name), spec) for name, spec in _mapping(path, tree, "arms").items()}
    baseline = str(tree.get("baseline") or next(iter(arms)))
    if baseline not in arms:
        raise UserError(f"{where('baseline')}: baseline: no arm named {baseline!r}{nearest(baseline, arms)}")
    if len(arms) < 2:
        raise UserError(f"{path}: arms: a comparison needs at least two")
    for key, known in (("setting", SETTINGS), ("unit", UNITS), ("points", POINTS), ("metric", METRICS)):
        if key in tree and (not isinstance(tree[key], str) or tree[key] not in known):
            raise UserError(f"{where(key)}: {key} is one of {', '.join(known)}, not {tree[key]!r}")
    labels = [arm.label or name.replace("_", " ") for name, arm in arms.items()]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise UserError(f"{path}: arms: two are called {twice!r} in the report; give them labels that differ")
    plain = {key: tree[key] for key in ("setting", "unit", "points", "metric") if key in tree}
    images = _positive(where("train_images"), tree, "train_images")
    plan = Plan(
        name=path.stem,
        description=str(tree.get("description") or ""),
        arms={baseline: arms[baseline]} | arms,
        baseline=baseline,
        budgets=_budgets(where("budgets"), tree["budgets"]),
        seeds=_seeds(where("seeds"), tree["seeds"]),
        set=_mapping(path, tree, "set"),
        overrides=given,
        tuned=_tuned(where("tuned"), tree.get("tuned") or []),
        effect=_positive(where("effect"), tree, "effect"),
        sd=_positive(where("sd"), tree, "sd"),
        train_images=None if images is None else round(images),
        published=_published(path, tree.get("published") or [], arms),
        **plain,
    )
    for key in _flat(given):
        if key in _OURS:
            raise UserError(f"{_COMMAND_LINE}: {key} belongs to the study; leave it out")
    for key in (key for settings in (plan.set, *(arm.set for arm in arms.values())) for key in _flat(settings)):
        if key in _OURS:
            raise UserError(f"{path}: {key} belongs to the study; leave it out of set")
    return replace(plan, budgets=(1.0,)) if plan.points == "crossing" else plan


def _keys_of(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys of recipes with their values, from settings that are written as a tree or in full."""
    for name, value in settings.items():
        full = f"{prefix}{name}"
        if full in SECTIONS and isinstance(value, dict):
            yield from _keys_of(value, f"{full}.")
        else:
            yield full, value


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Full keys of settings, written as a tree or in full."""
    for key, value in settings.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")


def _value(key: str, text: str) -> Any:
    """A plan's key from the command line: a list without quotes, a number or text."""
    if key in ("arms", "set", "published"):
        raise UserError(f"{_COMMAND_LINE}: {key} is written in the plan; write recipe keys as they are")
    if key in ("budgets", "seeds", "tuned"):
        return [part.strip() for part in text.strip("[]").split(",") if part.strip()]
    return text


def _mapping(path: Path, tree: dict, key: str) -> dict[str, Any]:
    value = tree.get(key) or {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: {key} is a mapping, not {value!r}")
    return dict(value)


def _arm(path: Path, name: str, spec: Any) -> Arm:
    words = [spec.get("recipe"), spec.get("label", "")] if isinstance(spec, dict) else [None]
    if not all(isinstance(word, str) for word in words) or spec.keys() - {"recipe", "set", "label"}:
        raise UserError(
            f"{path}: arms.{name}: write {{recipe: NAME}}, and if needed set: {{key: value}} and label: TEXT"
        )
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or name.startswith("."):
        raise UserError(f"{path}: arms: {name!r} becomes part of a folder's name; use letters, digits and _")
    recipe = spec["recipe"]
    beside = path.parent / recipe.partition(":")[0]
    if beside.suffix in (".yaml", ".yml") and beside.is_file():
        recipe = str(path.parent / recipe)
    return Arm(name, recipe, _mapping(path, spec, "set"), spec.get("label", ""))


def _budgets(where: str, values: Any) -> tuple[float, ...]:
    values = values if isinstance(values, list) else [values]
    amounts = [Amount.parse(value, f"{where}: budgets") for value in values]
    for amount in amounts:
        if amount.unit != "%" or amount.value == 0:
            raise UserError(f"{where}: budgets: {amount.text!r} is not a share; write them as 25%, 50%, 100%")
    shares = tuple(sorted({float(amount.value / 100) for amount in amounts}))
    if len(shares) < len(values):
        raise UserError(f"{where}: budgets: one of them comes twice")
    if shares[-1] != 1:
        raise UserError(f"{where}: budgets lacks 100%, where the baseline's value is the target of the arms; add it")
    return shares


def _seeds(where: str, values: Any) -> tuple[int, ...]:
    values = values if isinstance(values, list) else [values]
    if not all(str(value).isdecimal() for value in values):
        raise UserError(f"{where}: seeds: whole numbers, not {values}")
    seeds = tuple(int(value) for value in values)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{where}: seeds: one of them comes twice; each seed counts once")
    return seeds


def _tuned(where: str, keys: Any) -> tuple[str, ...]:
    keys = keys if isinstance(keys, list) else [keys]
    check_tuned(keys, f"{where}: ")
    return tuple(keys)


def _positive(where: str, tree: dict, key: str) -> float | None:
    if tree.get(key) is None:
        return None
    try:
        value = float(tree[key])
    except (TypeError, ValueError):
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"{where}: {key} is a positive number, not {tree[key]!r}")
    return value


def _published(path: Path, rows: Any, arms: dict[str, Arm]) -> tuple[Published | PublishedValue, ...]:
    found: list[Published | PublishedValue] = []
    for row in rows if isinstance(rows, list) else [rows]:
        kind: type[Any] = PublishedValue if isinstance(row, dict) and "value" in row else Published
        try:
            point = kind(**{name: float(v) if name in _PUBLISHED_NUMBERS else v for name, v in row.items()})
            if not all(math.isfinite(getattr(point, name)) for name in _PUBLISHED_NUMBERS & row.keys()):
                raise ValueError
        except (AttributeError, TypeError, ValueError):
            forms = " or ".join(f"{{{', '.join(f.name for f in fields(k))}}}" for k in (Published, PublishedValue))
            raise UserError(f"{path}: published: a list of {forms}, with plain numbers, not {row!r}") from None
        if isinstance(point, PublishedValue):
            for key, value, known in (("arm", point.arm, arms), ("metric", point.metric, METRICS)):
                if not isinstance(value, str) or value not in known:
                    raise UserError(f"{path}: published: no {key} {value!r}{nearest(str(value), known)}")
        found.append(point)
    return tuple(found)
