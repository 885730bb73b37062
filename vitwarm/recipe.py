"""Find, inherit, override, freeze and hash a recipe.

A recipe is a YAML file that sets some of the keys of `vitwarm.config.Config`. It is read in layers, each overriding the
one before: the defaults of the dataclasses, the recipe's ancestors (`base:`), the recipe itself, the command line.
A file may also hold variants of its recipe (`variants:`), recipes with names of their own that inherit the file's.
A recipe is data only: interpolations are refused, so that reading somebody's recipe runs no code.

The ancestors come in the order of a walk: depth first, parents from left to right, each recipe once, after its own
ancestors. So a recipe overrides all its ancestors, the later of two parents wins, and an ancestor of both overrides
neither. A list of parents whose later one comes first in this order is refused.
"""

import contextlib
import copy
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, NamedTuple, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ValidationError

from vitwarm.amounts import GRAMMAR
from vitwarm.checks import (
    ANY_CLASSES,
    KEYS,
    SECTIONS,
    SHORT,
    check,
    check_tree,
    main_stage,
    nearest,
    plain,
    rule_of,
    spelled_out,
    wrong_type,
)
from vitwarm.config import Config
from vitwarm.errors import UserError, without_secrets
from vitwarm.files import expanded
from vitwarm.procedural import list_rules, rule_class
from vitwarm.reading import dump_yaml, parse_yaml, read_text, read_yaml

# Two runs that differ only here are the same experiment.
NOT_IDENTITY = ("name", "description", "resume_from", "run", "images.cache", "text.cache")  # of run.*, smoke alone is
SMOKE = "-smoke"  # behind the hash and the folder of a run that only tries its recipe out
_NOT_RECIPES = ("budgets", "lab", "accelerate")  # folders beside the recipes, with settings of other kinds
_USAGE = "say recipe=NAME or recipe=PATH.yaml (recipe=list lists the shipped ones)"


class _Place(NamedTuple):
    """Where a recipe is: a file, or a variant within it; written PATH.yaml or PATH.yaml:VARIANT."""

    path: Path
    variant: str = ""

    @property
    def name(self) -> str:
        return self.variant or self.path.stem

    def __str__(self) -> str:
        return f"{self.path}:{self.variant}" if self.variant else str(self.path)


def load_recipe(arguments: list[str]) -> Config:
    """Read the recipe that a command line names, with its overrides, and check it.

    Args:
        arguments: One `recipe=NAME`, `recipe=PATH.yaml` or `recipe=PATH.yaml:VARIANT`, and any number of `a.b=c`; of
            two overrides of a key the last one counts here, while the `vitwarm` command refuses them.

    Returns:
        The resolved recipe. `name` is that of its file or variant; `warmup.rule` carries every parameter of the rule.

    Raises:
        UserError: The recipe is not found, not readable, or has an impossible value; one override hides another.
    """
    pairs = [_split(argument) for argument in arguments]
    named = [value for key, value in pairs if key == "recipe"]
    if len(named) != 1:
        raise UserError(f"no recipe: {_USAGE}" if not named else f"{len(named)} recipes: {_USAGE}, once")
    place = _find(named[0])
    overrides: dict = {}
    for key, value in dict(pairs).items():
        if key in SHORT and not value.startswith("{"):
            key = f"{key}.{SHORT[key]}"
        if key != "recipe":
            _insert(overrides, key, _value(key, value))
    return _resolve([*_lineage(place), ("", overrides)], name=place.name)


def build_recipe(overrides: Mapping[str, Any], recipe: str | Path | None = None) -> Config:
    """A recipe from plain values, checked as a file is.

    Args:
        overrides: a tree of sections and keys, or full keys such as `images.epochs`, or both.
        recipe: what they are for: a recipe as after `recipe=`; None is for the defaults.

    Raises:
        UserError: the recipe is not found, or a key or value is impossible.
    """
    tree: dict[str, Any] = {}
    for name, value in overrides.items():
        _insert(tree, name, spelled_out(plain(value), name))
    layers, place = [("", tree)], None
    if recipe is not None:
        if not isinstance(recipe, str | Path):
            raise UserError(f"recipe is {recipe!r}; give the name of a shipped recipe or the path of a file")
        place = _find(str(recipe))
        layers = [*_lineage(place), *layers]
    return _resolve(layers, name=place.name if place else "")


def list_recipes() -> list[tuple[str, Path, str]]:
    """The shipped recipes as (name, path, one-line purpose), sorted by path; variants follow their file."""
    rows = []
    for path in _shipped():
        recipe, variants = _read(path)
        for place, tree in [(_Place(path), recipe), *((_Place(path, name), tree) for name, tree in variants.items())]:
            rows.append((place.name, path, str(tree.get("description", ""))))
    return rows


def recipe_text(name: str) -> str:
    """The text of a shipped recipe, for a copy to edit: its file, or a variant with its comment as a file of its own.

    Raises:
        UserError: No recipe of that name is shipped.
    """
    place = _find_shipped(name)
    if not place.variant:
        return read_text(place.path)
    tree = dict(_read(place.path)[1][name])
    base = [place.path.stem, *_parents(place, tree)]
    tree = {"base": base if len(base) > 1 else base[0], **tree}
    return f"{_comment(place)}\n{dump_yaml(tree)}"


def recipe_header(name: str) -> str:
    """The comment at the head of a recipe's file, or the one above a variant.

    Args:
        name: As for `recipe=`.
    """
    return _comment(_find(name))


def freeze(config: Config) -> str:
    """The resolved recipe as YAML: every key, with its hash in the first line; no secrets of addresses."""
    return f"# A resolved vitwarm recipe, hash {recipe_hash(config)}\n{without_secrets(dump_yaml(asdict(config)))}"


def read_frozen(path: str | Path) -> Config:
    """Read back, and check, what `freeze` wrote.

    Raises:
        UserError: The file is missing, not readable, or not a resolved recipe of this version.
    """
    path = Path(path)
    return _resolve([(f"{path}: ", read_yaml(path))], name=path.stem)


def frozen_hash(path: str | Path) -> str:
    """The hash that a frozen recipe bears in its first line; "" if there is none, or the file cannot be read."""
    with contextlib.suppress(UserError):
        return read_text(Path(path)).partition("\n")[0].strip().rpartition(", hash ")[2]
    return ""


def recipe_hash(config: Config) -> str:
    """12 hex digits (SHA-256) that name an experiment: all keys but `NOT_IDENTITY`.

    Under `run.smoke` it is another experiment, with `SMOKE` behind the digits, so that nothing takes one for the other.

    A key that came with a later version (`since` of `vitwarm.config.key`) is left out where it has its default, so that
    a recipe which does not use it keeps the hash that it had before.
    """
    tree = asdict(config)
    for name in NOT_IDENTITY:
        section, _, leaf = name.rpartition(".")
        del (tree[section] if section else tree)[leaf]
    tree["warmup"]["rule"] = rule_of(config.warmup.rule).spec()
    text = without_secrets(json.dumps(_without_later_keys(tree), sort_keys=True))
    return hashlib.sha256(text.encode()).hexdigest()[:12] + (SMOKE if config.run.smoke else "")


def _without_later_keys(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A section of a recipe without keys of later versions that have their default, and without sections of such."""
    kept: dict[str, Any] = {}
    for name, value in section.items():
        full = f"{prefix}{name}"
        if full in SECTIONS:
            if part := _without_later_keys(value, f"{full}."):
                kept[name] = part
        elif not KEYS[full].field.metadata["since"] or value != KEYS[full].default:
            kept[name] = _floats(value) if float in (KEYS[full].type, *get_args(KEYS[full].type)) else value
    return kept


def _floats(value: Any) -> Any:
    """The value of a key of numbers, in which 300 and 300.0 are one."""
    if isinstance(value, list):
        return [float(number) for number in value]
    return None if value is None else float(value)


def help_text() -> str:
    """The override grammar, every key, and every rule with its parameters."""
    lines = [
        "recipe=NAME or recipe=PATH.yaml, then overrides: section.key=value. recipe=list lists the shipped recipes.",
        "Values are YAML (train.betas=[0.9,0.95], train.clip_grad=null); text keys take their value literally.",
        f"An amount is {GRAMMAR}.",
        "",
        "Keys, with type, default and bounds:",
    ]
    for key in KEYS.values():
        within = key.field.metadata["within"]
        bounds = f" in {within}" if within else ""
        lines.append(f"  {key.name}: {key.describe()} = {json.dumps(key.default)}{bounds}")
        lines.append(f"      {key.field.metadata['help']}")
    lines += ["", "Rules (warmup.rule.name) and their parameters (warmup.rule.PARAMETER):"]
    for name in list_rules():
        rule = rule_class(name)
        lines.append(f"  {name}: {(rule.__doc__ or '').strip().splitlines()[0]}")
        for field in fields(rule):
            default = "required" if field.default is MISSING else json.dumps(field.default)
            kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
            lines.append(f"    {field.name}: {kind} = {default}  {field.metadata.get('help', '')}".rstrip())
    return "\n".join(lines) + "\n"


# Finding and reading


def recipes_folder() -> Path:
    """Where the shipped recipes are: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def _shipped() -> list[Path]:
    folder = recipes_folder()
    return sorted(path for path in folder.rglob("*.yaml") if path.relative_to(folder).parts[0] not in _NOT_RECIPES)


def _find(name: str, beside: Path = Path()) -> _Place:
    """Resolve a recipe's name, or a path relative to the folder `beside`."""
    path = re.fullmatch(r"(.*\.ya?ml)(?::(.+))?", name)
    return _Place(beside / expanded(path[1]), path[2] or "") if path else _find_shipped(name)


def _find_shipped(name: str) -> _Place:
    for path in _shipped():
        if path.stem == name:
            return _Place(path)
    for path in _shipped():
        if f"{name}:" in read_text(path) and name in _read(path)[1]:  # parsing every file takes a third of a second
            return _Place(path, name)
    names = [known for known, _, _ in list_recipes()]
    raise UserError(f"no recipe named {name!r}{nearest(name, names)}; {_USAGE}")


def _read(path: Path) -> tuple[dict, dict[str, dict]]:
    """A file's recipe, and its variants by name, as written."""
    if not path.exists():
        raise UserError(f"no recipe file {path}; {_USAGE}")
    tree = read_yaml(path)
    variants = tree.pop("variants", {})
    if not isinstance(variants, dict):
        raise UserError(f"{path}: variants are recipes by their names, not {variants!r}")
    for name, variant in variants.items():
        if not isinstance(name, str) or not re.fullmatch(r"\w+", name) or not isinstance(variant, dict):
            raise UserError(f"{path}: variants: write NAME: {{key: value}}, a name of letters, digits and _")
    return tree, variants


def _comment(place: _Place) -> str:
    """The comment lines at the head of a file, or right above a variant in it."""
    lines = read_text(place.path).splitlines()
    if place.variant:
        at = next((at for at, line in enumerate(lines) if line.strip() == f"{place.variant}:"), 0)
        lines = [line.strip() for line in lines[:at]][::-1]
    comment = list(takewhile(lambda line: line.startswith("#"), lines))
    return "".join(f"{line}\n" for line in (comment[::-1] if place.variant else comment))


def _parents(place: _Place, tree: dict) -> list[str]:
    """Remove `base` from a recipe's tree and return the parents that it names."""
    base = tree.pop("base", None)
    names = [base] if isinstance(base, str) else [] if base is None else base
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{place}: base is the name or the path of a recipe, or a list of them, not {base!r}")
    return names


def _lineage(place: _Place) -> list[tuple[str, dict]]:
    """The recipe after its ancestors, in the order in which they apply, as (where to say an error is, tree)."""
    layers: dict[_Place, tuple[str, dict]] = {}
    _visit(place, layers, ())
    return list(layers.values())


def _visit(place: _Place, layers: dict[_Place, tuple[str, dict]], below: tuple[_Place, ...]) -> None:
    """Append a recipe's ancestors and the recipe to the layers; `below` are the recipes that led to it."""
    itself = _identity(place)
    if itself in below:
        raise UserError(f"{place}: base leads back to this recipe; a recipe cannot inherit from itself")
    if itself in layers:
        return
    tree, variants = _read(place.path)
    parents = []
    if place.variant:
        if place.variant not in variants:
            raise UserError(f"{place.path}: no variant {place.variant!r}{nearest(place.variant, variants)}")
        tree = variants[place.variant]
        parents.append(_Place(place.path))
    for name in _parents(place, tree):
        parents.append(_Place(place.path, name) if name in variants else _find_base(name, place))
    for parent in parents:
        _visit(parent, layers, (*below, itself))
    order = list(layers)
    for left, right in pairwise(parents):
        if order.index(_identity(right)) <= order.index(_identity(left)):
            raise UserError(f"{place}: base: {right.name} already applies before {left.name}; leave it out or reorder")
    layers[itself] = (f"{place}: ", tree)


def _identity(place: _Place) -> _Place:
    return place._replace(path=place.path.resolve())


def _find_base(name: str, child: _Place) -> _Place:
    """Resolve what a recipe names as its base: a file beside it, a shipped recipe or a path."""
    sibling = child.path.parent / f"{name}.yaml"
    try:
        place = _Place(sibling) if name and sibling.is_file() else _find(name, child.path.parent)
    except UserError as error:
        raise UserError(f"{child}: base: {error}") from error
    if not place.path.exists():
        raise UserError(f"{child}: base: no recipe file {place.path}")
    return place


# Overriding


def _split(argument: str) -> tuple[str, str]:
    key, equals, value = argument.partition("=")
    if not equals:
        raise UserError(f"{argument!r} is not an override; write key=value, such as train.lr=1e-3")
    key = key.strip()
    if not re.fullmatch(r"\w+(\.\w+)*", key):
        raise UserError(f"{argument!r}: {key!r} is not a key; write section.key=value, and a list whole: [0.9, 0.999]")
    if key == "base":
        raise UserError("base= belongs in a recipe file; on the command line name the recipe with recipe=")
    return key, value


def override_words(*layers: Mapping[str, Any]) -> list[str]:
    """Settings in layers as the words of a command line: of a key, also one within a mapping, the last value counts.

    Args:
        layers: full keys of recipes with their values, plain or as text.
    """
    merged: dict[str, Any] = {}
    for key, value in (pair for layer in layers for pair in layer.items()):
        above = next((known for known in merged if key.startswith(f"{known}.")), None)
        if above is not None and isinstance(merged[above], Mapping):
            section = merged[above] = copy.deepcopy(dict(merged[above]))
            *sections, leaf = key.removeprefix(f"{above}.").split(".")
            for name in sections:
                section = section.setdefault(name, {})
            section[leaf] = _value(key, value) if isinstance(value, str) else value
        else:
            merged = {known: old for known, old in merged.items() if not known.startswith(f"{key}.")} | {key: value}
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in merged.items()]


def _insert(tree: dict, key: str, value: Any) -> None:
    """Put one override into the tree of overrides; the order of several does not matter."""
    *sections, leaf = key.split(".")
    for depth, section in enumerate(sections):
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UserError(f"{key}: {'.'.join(sections[: depth + 1])} is given twice, also as a value")
    _lay(tree, leaf, value, key)


def _lay(tree: dict, leaf: Any, value: Any, key: str) -> None:
    if isinstance(value, Mapping) and isinstance(inner := tree.setdefault(leaf, {}), dict):
        for part, own in value.items():
            _lay(inner, part, own, f"{key}.{part}")
    elif repr(tree.setdefault(leaf, value)) != repr(value):
        raise UserError(f"{key} is given twice, as {value!r} and as part of another override; give it once")


def _value(key: str, text: str) -> Any:
    """Text keys take their value literally (globs, braces, dates); all others are read as YAML."""
    declared = KEYS.get(key)
    if key.startswith(("transfer.sources.", "transfer.controls.")):  # their values are text, as `init_from` is
        return text
    if declared is not None and declared.is_text:
        return None if declared.optional and text in ("null", "") else text
    if "${" in text:
        return text  # refused with its key by check_tree
    return parse_yaml(text, key)


# Merging


def _resolve(layers: list[tuple[str, dict]], name: str) -> Config:
    node = copy.deepcopy(_defaults())
    for where, tree in ((where, spelled_out(tree)) for where, tree in layers):
        check_tree(tree, where)
        _merge(node, tree, where)
    config: Any = OmegaConf.to_object(node)
    config.name = config.name or name
    check(config)
    if config.model.num_classes is None and main_stage(config) != "images":
        config.model.num_classes = ANY_CLASSES  # no data tell
    config.warmup.rule = rule_of(config.warmup.rule).spec()
    return config


@functools.cache
def _defaults() -> DictConfig:
    """Every key with its default; to be copied, which is faster than reading the classes again."""
    node: DictConfig = OmegaConf.structured(Config)
    return node


def _merge(node: DictConfig, tree: dict, where: str) -> None:
    rule = tree.get("warmup", {}).get("rule", {})
    known: Any = OmegaConf.to_container(node.warmup.rule)
    node.warmup.rule = _merge_rule(known, rule)
    try:
        node.merge_with(tree)
    except ValidationError as error:
        key = re.sub(r"\[\d+\]$", "", error.full_key or "")
        if key not in KEYS:
            raise UserError(f"{where}{_one_line(error)}") from error
        value: Any = tree
        for part in key.split("."):
            value = value[part]
        raise wrong_type(key, value, where) from error


def _merge_rule(parent: dict, child: dict) -> dict:
    """The child's parameters over the parent's; under another name a rule, or a rule within it, starts afresh."""
    if child.get("name", parent.get("name")) != parent.get("name"):
        parent = {}
    merged = dict(parent)
    for name, value in child.items():
        nested = isinstance(value, dict) and isinstance(parent.get(name), dict)
        merged[name] = _merge_rule(parent[name], value) if nested else value
    return merged


def _one_line(error: object) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
