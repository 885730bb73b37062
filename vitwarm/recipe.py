"""Find, inherit, override, freeze and hash a recipe.

A recipe is a YAML file that sets some of the keys of `vitwarm.config.Config`. It is read in layers, each overriding the
one before: the defaults of the dataclasses, the recipe's ancestors (`base:`), the recipe itself, the command line.
It is data only: interpolations are refused, so that reading a stranger's recipe runs nothing.
"""

import hashlib
import json
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from vitwarm.amounts import GRAMMAR
from vitwarm.checks import KEYS, SECTIONS, check, check_tree, nearest, rule_of, value_of, wrong_type
from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.procedural import list_rules, rule_class

# Two runs that differ only here are the same experiment.
NOT_IDENTITY = ("name", "description", "resume_from", "run")
_NOT_RECIPES = ("budgets", "accelerate")  # folders beside the recipes, with settings of other kinds
_USAGE = "say recipe=NAME or recipe=PATH.yaml (recipe=list lists the shipped ones)"


def load_recipe(arguments: list[str]) -> Config:
    """Read the recipe that a command line names, with its overrides, and check it.

    Args:
        arguments: One `recipe=NAME_OR_PATH` and any number of `a.b=c`; of two overrides of a key the last one counts.

    Returns:
        The resolved recipe. `name` is its file's name; `warmup.rule` carries every parameter of the rule.

    Raises:
        UserError: The recipe is not found, not readable, or says something impossible.
    """
    pairs = [_split(argument) for argument in arguments]
    named = [value for key, value in pairs if key == "recipe"]
    if len(named) != 1:
        raise UserError(f"no recipe: {_USAGE}" if not named else f"{len(named)} recipes: {_USAGE}, once")
    path = _find(named[0])
    overrides: dict = {}
    for key, value in pairs:
        if key != "recipe":
            _insert(overrides, key, value)
    return _resolve([*_lineage(path), ("", overrides)], name=path.stem)


def list_recipes() -> list[tuple[str, Path, str]]:
    """The shipped recipes as (name, path, one-line purpose), sorted by path."""
    return [(path.stem, path, str(read_yaml(path).get("description", ""))) for path in _shipped()]


def freeze(config: Config) -> str:
    """The resolved recipe as YAML: every key, with its hash in the first line."""
    return f"# A resolved vitwarm recipe, hash {recipe_hash(config)}\n{OmegaConf.to_yaml(OmegaConf.structured(config))}"


def read_frozen(path: str | Path) -> Config:
    """Read back, and check, what `freeze` wrote.

    Raises:
        UserError: The file is missing, not readable, or not a resolved recipe of this version.
    """
    path = Path(path)
    return _resolve([(f"{path}: ", read_yaml(path))], name=path.stem)


def frozen_hash(path: str | Path) -> str:
    """The hash that a frozen recipe bears in its first line; "" if there is none."""
    with open(path) as lines:
        return lines.readline().strip().rpartition(", hash ")[2]


def recipe_hash(config: Config) -> str:
    """12 hex digits (SHA-256) that name an experiment: all keys but the recipe's name, description and `run`.

    A key that came with a later version (`since` of `vitwarm.config.key`) is left out where it has its default, so that
    a recipe which does not use it keeps the hash that it had before.
    """
    tree = OmegaConf.to_container(OmegaConf.structured(config))  # also makes 300 and 300.0 one number in a float key
    for key in NOT_IDENTITY:
        del tree[key]
    tree["warmup"]["rule"] = rule_of(config.warmup.rule).spec()
    for key in KEYS.values():
        if key.field.metadata["since"] and value_of(config, key.name) == key.default:
            *sections, leaf = key.name.split(".")
            holder = tree
            for section in sections:
                holder = holder[section]
            del holder[leaf]
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


def help_text() -> str:
    """The override grammar, every key, and every rule with its parameters."""
    lines = [
        "recipe=NAME or recipe=PATH.yaml, then overrides: section.key=value. recipe=list lists the shipped recipes.",
        "Values are YAML (train.betas=[0.9,0.95], train.clip_grad=null); text is taken letter by letter.",
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


def _find(name: str, beside: Path | None = None) -> Path:
    """Resolve a recipe's name, or a path relative to the folder `beside` (the working folder by default)."""
    if name.endswith((".yaml", ".yml")):
        return (beside or Path()) / name
    sibling = beside / f"{name}.yaml" if beside else None
    if sibling is not None and name and sibling.is_file():
        return sibling
    shipped = {path.stem: path for path in _shipped()}
    if name not in shipped:
        raise UserError(f"no recipe named {name!r}{nearest(name, shipped)}; {_USAGE}")
    return shipped[name]


def read_yaml(path: Path) -> dict:
    """A YAML file as plain nested values; interpolations stay text."""
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not readable as YAML: {_one_line(error.problem or error.context)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {_one_line(error)}") from error
    except OmegaConfBaseException as error:  # a malformed ${...}
        raise UserError(f"{path}: {_one_line(error)}") from error
    except FileNotFoundError as error:
        raise UserError(f"no recipe file {path}; {_USAGE}") from error
    except OSError as error:  # also what OmegaConf raises for a file that is one bare value
        raise UserError(f"{path}: cannot be read as a recipe: {error.strerror or _one_line(error)}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, not a list")
    return loaded


def _lineage(path: Path) -> list[tuple[str, dict]]:
    """The recipe and its ancestors, oldest first, as (where to say an error is, tree)."""
    layers: list[tuple[str, dict]] = []
    seen: list[Path] = []
    while True:
        if path.resolve() in seen:
            raise UserError(f"{path}: base leads back to this recipe; a recipe cannot inherit from itself")
        seen.append(path.resolve())
        tree = read_yaml(path)
        base = tree.pop("base", None)
        layers.insert(0, (f"{path}: ", tree))
        if base is None:
            return layers
        if not isinstance(base, str):
            raise UserError(f"{path}: base is the name or the path of one recipe, not {base!r}")
        try:
            path = _find(base, beside=path.parent)
            path.stat()
        except (UserError, OSError) as error:
            reason = error if isinstance(error, UserError) else f"no recipe file {path}"
            raise UserError(f"{seen[-1]}: base: {reason}") from error


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


def _insert(tree: dict, key: str, text: str) -> None:
    """Put one override into the tree of overrides."""
    *sections, leaf = key.split(".")
    for depth, section in enumerate(sections):
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UserError(f"{key}: {'.'.join(sections[: depth + 1])} was set to a value before")
    if isinstance(tree.get(leaf), dict) and key in SECTIONS:
        raise UserError(f"{key} is a section, not a value")
    tree[leaf] = _value(key, text)


def _value(key: str, text: str) -> Any:
    """Text keys take their value letter by letter (globs, braces, dates); all others are read as YAML."""
    declared = KEYS.get(key)
    if declared is not None and declared.is_text:
        return None if declared.optional and text in ("null", "") else text
    if "${" in text:
        return text  # refused with its key by check_tree
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        problem = getattr(error, "problem", None) or error
        raise UserError(f"{key}: cannot read {text!r}: {_one_line(problem)}") from error


# Merging


def _resolve(layers: list[tuple[str, dict]], name: str) -> Config:
    node = OmegaConf.structured(Config)
    for where, tree in layers:
        check_tree(tree, where)
        node = _merge(node, tree, where)
    config: Config = OmegaConf.to_object(node)
    config.name = config.name or name
    check(config)
    config.warmup.rule = rule_of(config.warmup.rule).spec()
    return config


def _merge(node: DictConfig, tree: dict, where: str) -> DictConfig:
    rule = tree.get("warmup", {}).get("rule", {})
    node.warmup.rule = _merge_rule(OmegaConf.to_container(node.warmup.rule), rule)
    try:
        return OmegaConf.merge(node, tree)
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
