"""A plan of the laboratory: tasks x warm-ups x parts x settings x seeds. One YAML file; data only, like a recipe."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from vitwarm.checks import KEYS, nearest
from vitwarm.errors import UserError
from vitwarm.files import expanded
from vitwarm.reading import read_yaml
from vitwarm.recipe import override_words, recipes_folder

NONE = "none"  # the warm-up of a control
_RUNS = ("run", "model")  # sections that both a warm-up and a task have
_OURS = (  # set for each cell
    "seed",
    "run.dir",
    "run.smoke",
    "run.keep_at",
    "init_from",
    "resume_from",
    "transfer.sources",
    "algorithmic.task",
)
_EMBEDDINGS = "algorithmic.embeddings"
_NAME = re.compile(r"\w[\w .,+-]*")

Settings = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """A task: a recipe without a warm-up, the control.

    Attributes:
        recipe: its name or path.
        take_off: accuracy, in per cent, from which a run counts as having taken off.
        set: keys of the recipe, in full.
        title: what to call it in a report.
    """

    recipe: str
    take_off: float
    set: Settings = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class WarmUp:
    """A warm-up: the one of a recipe, or a composition of others.

    Attributes:
        recipe: its name or path; its main stage is left out. Empty for a composition.
        sources: of a composition, groups -> name of a warm-up.
        set: keys of the recipe, in full.
        title: what to call it in a report.
    """

    recipe: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    set: Settings = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class Part:
    """What of a warm-up is taken over, and what is done to it: keys of the task's recipe."""

    set: Settings = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class Setting:
    """A way to train: keys that go to the warm-up (`warmup.*`), to both (`model.*`, `run.*`) or to the task (others).
    Those for single warm-ups are of the warm-up or of what is taken over, so that arms and their control train alike.

    Attributes:
        set: for all warm-ups.
        warmups: keys for single warm-ups, on top.
        prediction: what was expected before it ran.
        title: what to call it in a report.
    """

    set: Settings = field(default_factory=dict)
    warmups: Mapping[str, Settings] = field(default_factory=dict)
    prediction: str = ""
    title: str = ""


@dataclass(frozen=True)
class Block:
    """Cells that are carried out together: every combination, seed by seed."""

    tasks: tuple[str, ...]
    warmups: tuple[str, ...]
    parts: tuple[str, ...]
    settings: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Published:
    """A published value, in per cent, beside which ours is shown."""

    task: str
    warmup: str
    part: str
    value: float
    source: str


@dataclass(frozen=True)
class LabPlan:
    """A plan, as its YAML file describes it; docs/lab.md explains every key.

    Attributes:
        name: name of its file.
        cells: in the order in which they are carried out, the most important first.
        set: keys of every run, as in `Setting`.
        overrides: keys of the command line, which count more than all others.
    """

    name: str
    description: str
    tasks: Mapping[str, Task]
    warmups: Mapping[str, WarmUp]
    parts: Mapping[str, Part]
    settings: Mapping[str, Setting]
    cells: tuple[Block, ...]
    published: tuple[Published, ...] = ()
    set: Settings = field(default_factory=dict)
    overrides: Settings = field(default_factory=dict)

    def title(self, kind: str, name: str) -> str:
        """What a report calls a task, a warm-up, a part or a setting; `kind` is the plan's key."""
        return getattr(getattr(self, kind).get(name), "title", "") or name.replace("_", " ")

    def task_words(self, task: str, warmup: str, part: str, setting: str) -> list[str]:
        """The words that give the recipe of a task's run, but for its start and seed."""
        keys = [self.set, self.tasks[task].set, *self._of_setting(setting, warmup)]
        keys.insert(2, self.parts[part].set if warmup != NONE else {})
        keys = [{key: value for key, value in layer.items() if not _warms(key)} for layer in keys]
        return [f"recipe={self.tasks[task].recipe}", "warmup.budget=0", *override_words(*keys)]

    def warmup_words(self, warmup: str, setting: str) -> list[str]:
        """The words that give the recipe of a warm-up's run, but for its seed."""
        own = self.warmups[warmup]
        keys = [self.set, own.set, *self._of_setting(setting, warmup)]
        keys = [{key: value for key, value in layer.items() if _of_warmup(key)} for layer in keys]
        return [f"recipe={own.recipe}", "algorithmic.task=null", *override_words(*keys)]

    def _of_setting(self, setting: str, warmup: str) -> list[Settings]:
        own = self.settings[setting]
        return [own.set, own.warmups.get(warmup, {}), self.overrides]


def _warms(key: str) -> bool:
    return key.startswith("warmup.")


def _of_warmup(key: str) -> bool:
    return _warms(key) or key.partition(".")[0] in _RUNS


def find_lab(name: str) -> Path:
    """The file of a plan: a path, or the name of a shipped one.

    Raises:
        UserError: there is none.
    """
    path, shipped = expanded(name), _shipped()
    if name.endswith((".yaml", ".yml")):
        if path.is_file():
            return path
        raise UserError(f"no plan {path}; shipped plans: {', '.join(shipped)}")
    if name not in shipped:
        raise UserError(f"no plan named {name!r}{nearest(name, shipped)}; shipped: {', '.join(shipped)}")
    return shipped[name]


def list_labs() -> list[tuple[str, str]]:
    """The shipped plans as (name, one-line purpose)."""
    return [(name, str(read_yaml(path).get("description", ""))) for name, path in _shipped().items()]


def _shipped() -> dict[str, Path]:
    return {path.stem: path for path in sorted((recipes_folder() / "lab").glob("*.yaml"))}


def read_lab(path: Path, overrides: Mapping[str, str] | None = None) -> LabPlan:
    """Read and check a plan.

    Args:
        path: the YAML file.
        overrides: `seeds`, for all cells, and keys of recipes, which go to `set`.

    Raises:
        UserError: the plan is malformed or impossible.
    """
    tree = _Reader(path).tree(read_yaml(path), dict(overrides or {}))
    return LabPlan(path.stem, **tree)


class _Reader:
    """Reads one file, or the command line; every error names it."""

    def __init__(self, path: Path | Literal["command line"]):
        self.path = path

    def tree(self, tree: dict[str, Any], overrides: dict[str, str]) -> dict[str, Any]:
        typed, seeds = _Reader("command line"), tree.pop("seeds", None)
        default = None if seeds is None else self.seeds(seeds, "seeds")
        fixed = typed.seeds(overrides.pop("seeds"), "seeds") if "seeds" in overrides else None
        self.known(tree, {f.name for f in fields(LabPlan)} - {"name", "overrides"}, "")
        found: dict[str, Any] = {
            kind: {str(name): self.one(cls, spec, f"{kind}.{name}") for name, spec in self.mapping(tree, kind).items()}
            for kind, cls in (("tasks", Task), ("warmups", WarmUp), ("parts", Part), ("settings", Setting))
        }
        self.compositions(found["warmups"])
        self.meant(found)
        blocks = tree.get("cells")
        if not isinstance(blocks, list) or not blocks:
            raise UserError(f"{self.path}: cells: a list of {{tasks, warmups, parts, settings, seeds}}")
        return found | {
            "description": str(tree.get("description") or ""),
            "cells": tuple(self.block(b, f"cells[{i}]", found, fixed, default) for i, b in enumerate(blocks)),
            "published": self.all_published(self.rows(tree, "published"), found),
            "set": self.settings(self.mapping(tree, "set"), "set"),
            "overrides": typed.settings(overrides, ""),
        }

    def at(self, where: str) -> str:
        return f"{self.path}: {where}: " if where else f"{self.path}: "

    def known(self, spec: Any, keys: set[str], where: str) -> None:
        at = self.at(where)
        if not isinstance(spec, dict):
            raise UserError(f"{at}write {{{', '.join(sorted(keys))}}}, not {spec!r}")
        if unknown := sorted(spec.keys() - keys, key=str):
            raise UserError(f"{at}unknown key {unknown[0]}{nearest(str(unknown[0]), keys)}")

    def mapping(self, tree: dict[str, Any], key: str, where: str = "") -> dict[str, Any]:
        value = tree.get(key) or {}
        if not isinstance(value, dict):
            raise UserError(f"{self.at(where)}{key} is a mapping, not {value!r}")
        return value

    def rows(self, tree: dict[str, Any], key: str) -> list[Any]:
        value = tree.get(key) or []
        if not isinstance(value, list):
            raise UserError(f"{self.path}: {key} is a list, not {value!r}")
        return value

    def one(self, cls: type[T], spec: Any, where: str) -> T:
        """A task, warm-up, part or setting."""
        name = where.partition(".")[2]
        if not _NAME.fullmatch(name) or where == f"warmups.{NONE}":
            raise UserError(f"{self.path}: {where}: {name!r} becomes part of a folder's name; choose another")
        self.known({} if spec is None else spec, {f.name for f in fields(cls)}, where)  # type: ignore[arg-type]
        given = {key: value for key, value in dict(spec or {}).items() if value is not None}
        given |= {"recipe": str(given["recipe"])} if "recipe" in given else {}
        given |= {key: " ".join(str(given[key]).split()) for key in ("title", "prediction") if key in given}  # one line
        if "sources" in given:
            given["sources"] = {str(g): str(w) for g, w in self.mapping(given, "sources", where).items()}
            if not all(groups.split() for groups in given["sources"]):
                raise UserError(f"{self.path}: {where}: sources: write which groups a source gives, such as attention")
        given |= {"set": self.settings(self.mapping(given, "set", where), f"{where}.set")}
        if "warmups" in given:
            single = self.mapping(given, "warmups", where)
            given["warmups"] = {str(w): self.settings(keys, f"{where}.warmups.{w}") for w, keys in single.items()}
        at = given.get("take_off", 100.0)
        if isinstance(at, bool) or not isinstance(at, (int, float)) or not 1 < at <= 100:
            raise UserError(f"{self.path}: {where}: take_off is an accuracy in per cent, such as 20, not {at!r}")
        try:
            return cls(**given)
        except TypeError:
            raise UserError(f"{self.path}: {where}: recipe and take_off say what a task is") from None

    def settings(self, keys: Any, where: str) -> dict[str, Any]:
        """Full keys of recipes with their values."""
        if not isinstance(keys, dict):
            raise UserError(f"{self.at(where)}keys of recipes with their values, not {keys!r}")
        for key in keys:
            if key in _OURS:
                raise UserError(f"{self.at(where)}{key} belongs to the laboratory; leave it out")
            rule = str(key).startswith("warmup.rule.")
            if key not in KEYS and not rule:
                raise UserError(f"{self.at(where)}no key {key}{nearest(str(key), KEYS)}; write them in full")
        return dict(keys)

    def compositions(self, warmups: dict[str, WarmUp]) -> None:
        for name, warmup in warmups.items():
            if bool(warmup.recipe) == bool(warmup.sources):
                raise UserError(f"{self.path}: warmups.{name}: write a recipe, or sources: {{attention: A, mlp: B}}")
            for source in warmup.sources.values():
                if not getattr(warmups.get(source), "recipe", ""):
                    raise UserError(f"{self.path}: warmups.{name}: no warm-up {source} with a recipe")

    def meant(self, found: dict[str, Any]) -> None:
        """Refuse keys without an effect, since a plan takes hours, and those that set arms apart from their control."""
        for kind, wrong in (("tasks", _warms), ("warmups", lambda key: not _of_warmup(key))):
            for name, one in found[kind].items():
                if key := next(filter(wrong, one.set), None):
                    raise UserError(f"{self.path}: {kind}.{name}.set: {key} has no effect there")
                if kind == "warmups" and one.sources and one.set:
                    raise UserError(f"{self.path}: {kind}.{name}: a composition has no keys; set those of its sources")
        for name, part in found["parts"].items():
            self.of_start(part.set, f"parts.{name}.set")
        for name, setting in found["settings"].items():
            for warmup, keys in setting.warmups.items():
                where = f"settings.{name}.warmups"
                if warmup not in found["warmups"]:
                    raise UserError(f"{self.path}: {where}: no {warmup!r}{nearest(warmup, found['warmups'])}")
                own = {key: value for key, value in keys.items() if not _warms(key)}
                if found["warmups"][warmup].sources and len(own) < len(keys):
                    raise UserError(f"{self.path}: {where}.{warmup}: a composition trains nothing; set its sources'")
                self.of_start(own, f"{where}.{warmup}")

    def of_start(self, keys: Settings, where: str) -> None:
        """Refuse keys that say more than what a task starts from: its control would be trained otherwise."""
        if key := next((k for k in keys if k != _EMBEDDINGS and not k.startswith("transfer.")), None):
            raise UserError(
                f"{self.path}: {where}: {key} would set the arm apart from its control by more than its start; only "
                f"transfer.* and {_EMBEDDINGS} can stand there, other keys in settings.NAME.set, for all"
            )

    def block(
        self,
        spec: Any,
        where: str,
        known: dict[str, Any],
        fixed: tuple[int, ...] | None,
        default: tuple[int, ...] | None,
    ) -> Block:
        """Cells; the seeds of the command line (`fixed`) count more than its own, the plan's (`default`) less."""
        self.known(spec, {f.name for f in fields(Block)}, where)
        names = {}
        controls = _listed(spec.get("warmups")) == [NONE]
        for kind, among in known.items():
            usual = [next(iter(among))] if kind in ("parts", "settings") and among else []
            names[kind] = tuple(map(str, _listed(spec.get(kind, usual))))
            allowed = [*among, NONE] if kind == "warmups" else list(among)
            if not names[kind] and not allowed and not (kind == "parts" and controls):
                raise UserError(f"{self.path}: {kind} is missing; cells name them. One without keys is NAME: {{}}")
            if not names[kind] and allowed:
                raise UserError(f"{self.path}: {where}: {kind} is missing; known: {', '.join(allowed)}")
            if (wrong := next((name for name in names[kind] if name not in allowed), None)) is not None:
                raise UserError(f"{self.path}: {where}: {kind}: no {wrong!r}{nearest(wrong, allowed)}")
        own = fixed or (self.seeds(spec["seeds"], f"{where}: seeds") if "seeds" in spec else default)
        if own is None:
            raise UserError(f"{self.path}: {where}: seeds is missing, and the plan has none for all cells")
        return Block(**names, seeds=own)

    def seeds(self, value: Any, where: str) -> tuple[int, ...]:
        """Seeds: numbers, and spans such as 0-9."""
        found: list[int] = []
        for word in (w for v in _listed(value) for w in str(v).split(",")):
            span = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", word)
            if not span or (span[2] and int(span[2]) - int(span[1]) not in range(1000)):
                raise UserError(f"{self.path}: {where}: whole numbers and spans such as 0-9, not {value!r}")
            found += range(int(span[1]), int(span[2] or span[1]) + 1)
        if not found:
            raise UserError(f"{self.path}: {where}: no seed; write whole numbers and spans such as 0-9")
        if len(set(found)) < len(found):
            raise UserError(f"{self.path}: {where}: one of them comes twice; each seed counts once")
        return tuple(found)

    def all_published(self, rows: list[Any], known: dict[str, Any]) -> tuple[Published, ...]:
        points = [self.published(row, known) for row in rows]
        places = [(point.task, point.warmup, point.part) for point in points]
        if twice := next((place for place in places if places.count(place) > 1), None):
            task, warmup, part = twice
            raise UserError(
                f"{self.path}: published: task {task}, warmup {warmup}, part {part} comes twice; leave one value"
            )
        return tuple(points)

    def published(self, row: Any, known: dict[str, Any]) -> Published:
        self.known(row, {f.name for f in fields(Published)}, "published")
        try:
            point = Published(**(row | {"value": float(row["value"])}))
            if not 0 <= point.value <= 100 or point.source is None:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            wanted = ", ".join(f.name for f in fields(Published))
            wanted = f"a list of {{{wanted}}}, the value in per cent"
            raise UserError(f"{self.path}: published: {wanted}, not {row!r}") from None
        for kind in ("tasks", "warmups", "parts"):
            name, allowed = getattr(point, kind[:-1]), [*known[kind], *([NONE] if kind != "tasks" else [])]
            if name not in allowed:
                raise UserError(f"{self.path}: published: no {kind[:-1]} {name!r}{nearest(str(name), allowed)}")
        if (point.warmup == NONE) != (point.part == NONE):
            raise UserError(
                f"{self.path}: published: warmup {point.warmup}, part {point.part}: part is {NONE} without a warm-up, "
                "and only there"
            )
        return point


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
