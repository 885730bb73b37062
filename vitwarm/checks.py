"""Refuses impossible recipes, in one line with the full key: unknown keys, wrong types, impossible values."""

import difflib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from vitwarm.amounts import Amount
from vitwarm.config import Config, MainStageConfig, OptimConfig
from vitwarm.errors import UserError, without_secrets
from vitwarm.files import expanded
from vitwarm.procedural import Rule, list_rules, make_rule
from vitwarm.reading import control_character
from vitwarm.selection import Selection, check_overlap, parse_control

_SECTIONS: dict[str, type] = get_type_hints(Config)
MAIN_STAGES = {n: s for n, s in _SECTIONS.items() if isinstance(s, type) and issubclass(s, MainStageConfig)}

# The key that says how long a main stage is.
LENGTHS = {name: f"{name}.{section.length_key}" for name, section in MAIN_STAGES.items()}

# Keys of timm.create_model that a recipe sets elsewhere, and where.
MODEL_ARGS_ELSEWHERE = {
    "num_classes": "model.num_classes",
    "model_name": "model.name",
    "pretrained": "init_from=timm:NAME",
    "checkpoint_path": "init_from",
}


# Further ones that are bounded, beside rates of dropout.
_MODEL_ARGS_WITHIN = {"depth": "[1, 1000]", "in_chans": "[3, 3]"}
ANY_CLASSES = 1000  # of a model without a main stage on images: any number will do
_MOST_LEVELS = 16  # of lists and mappings within each other


@dataclass(frozen=True)
class Key:
    """One leaf of the key tree: its full name, its type and the dataclass field that declares it."""

    name: str
    hint: Any
    field: Field

    @property
    def optional(self) -> bool:
        """Whether null is a value of this key."""
        return NoneType in get_args(self.hint)

    @property
    def type(self) -> Any:
        """The type without null."""
        if get_origin(self.hint) in (Union, UnionType):
            return next(hint for hint in get_args(self.hint) if hint is not NoneType)
        return self.hint

    @property
    def is_text(self) -> bool:
        """Whether the value is text, so that an override is taken letter by letter."""
        return self.type is str or get_origin(self.type) is Literal

    @property
    def default(self) -> Any:
        if self.field.default_factory is not MISSING:
            return self.field.default_factory()
        return self.field.default

    def describe(self) -> str:
        """The type, in words for an error message."""
        return _describe(self.type) + (" or null" if self.optional else "")


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    if get_origin(hint) is list:
        return f"list of {_describe(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return "mapping"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}[hint]


def key_tree(section: type = Config, prefix: str = "") -> Iterator[Key]:
    """Every key below `section`, in order of declaration."""
    hints = get_type_hints(section)
    for field in fields(section):
        if is_dataclass(hints[field.name]):
            yield from key_tree(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield Key(prefix + field.name, hints[field.name], field)


KEYS = {key.name: key for key in key_tree()}
SHORT = {"run.wandb": "project"}  # section -> the key that a value in place of the section stands for
SECTIONS = {name[:dot] for name in KEYS for dot in range(len(name)) if name[dot] == "."}


def nearest(word: str, words: Iterable[str]) -> str:
    """'; did you mean ...?' for an error message, or nothing when no word is near."""
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _nearest_key(name: str) -> str:
    """Prefer a key of the same section, then the same last part anywhere, then the most similar one."""
    section, _, leaf = name.rpartition(".")
    children = {full.rpartition(".")[2]: full for full in (*KEYS, *SECTIONS) if full.rpartition(".")[0] == section}
    near = difflib.get_close_matches(leaf, children, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {children[near[0]]}?"
    elsewhere = [full for full in KEYS if full.rpartition(".")[2] == leaf]
    return f"; did you mean {' or '.join(elsewhere)}?" if elsewhere else nearest(name, KEYS)


def plain(value: Any) -> Any:
    """A value of Python as a recipe holds it: NumPy's numbers, tuples, paths and rules as plain data, at any depth."""
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Rule):
        return rule_spec(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def spelled_out(tree: Any, name: str = "") -> Any:
    """A tree, or what stands under a key of it, with sections in place of their short forms."""
    if name in SHORT and not isinstance(tree, Mapping):
        return {SHORT[name]: tree}
    if not isinstance(tree, Mapping):
        return tree
    return {part: spelled_out(value, f"{name}.{part}" if name else str(part)) for part, value in tree.items()}


def check_tree(tree: dict, where: str = "", prefix: str = "") -> None:
    """Refuse unknown keys, misplaced mappings and interpolations in a tree of plain values, before it is merged.

    OmegaConf would find most of these too, but says it in several lines and without the nearest full key.

    Raises:
        UserError: With `where` (the recipe file) in front.
    """
    for name, value in tree.items():
        full = f"{prefix}{name}"
        if "." in str(name) and full in KEYS:
            raise UserError(f"{where}{full}: in a file each section is a mapping; {full.replace('.', ': {')}: ...")
        if full in SECTIONS:
            if not isinstance(value, dict):
                example = next(key for key in KEYS if key.startswith(full + "."))
                raise UserError(f"{where}{full} is a section with keys such as {example}, not a value")
            check_tree(value, where, full + ".")
            continue
        if full not in KEYS:
            shown = full if full.isprintable() else repr(full)
            raise UserError(f"{where}unknown key {shown}{_nearest_key(full)} (--help lists all)")
        _check_type(KEYS[full], value, where)


# OmegaConf would read 2 as true and "1_0" as 10; a number without quotes is no text: 1.10 would become 1.1
_PLAIN: dict[Any, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), str: (str, int)}


def _check_type(key: Key, value: Any, where: str) -> None:
    _check_plain(key, value, where)
    container = get_origin(key.type) if get_origin(key.type) in (list, dict) else None
    wrong = (
        (value is None and not key.optional)
        or (container is not None and value is not None and not isinstance(value, container))
        or (container is None and isinstance(value, (list, dict)))
        or (container is list and any(type(part) not in _PLAIN[get_args(key.type)[0]] for part in value or ()))
        or (container is None and value is not None and type(value) not in _PLAIN[str if key.is_text else key.type])
    )
    if wrong:
        raise wrong_type(key.name, value, where)


def wrong_type(name: str, value: Any, where: str = "") -> UserError:
    """The error for a value that the key cannot hold."""
    return UserError(f"{where}{name}: expected {KEYS[name].describe()}, got {_show(value)}")


def _check_plain(key: Key, value: Any, where: str, depth: int = 0) -> None:
    """Refuse values that are not plain data, at any depth, and those that are nested without end."""
    if depth > _MOST_LEVELS:
        raise UserError(f"{where}{key.name} has lists or mappings within each other, more than {_MOST_LEVELS} levels")
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str):
                raise UserError(f"{where}{key.name}: {name!r} is not a name; names are text")
        value = list(value) + list(value.values())
    if isinstance(value, list):
        for part in value:
            _check_plain(key, part, where, depth + 1)
    elif isinstance(value, str) and "${" in value:
        raise UserError(f"{where}{key.name}: '${{...}}' is not evaluated in a recipe; write the value itself")
    elif isinstance(value, float) and not math.isfinite(value) and get_origin(key.type) is dict:  # others have bounds
        raise UserError(f"{where}{key.name}: {value} is not finite")
    elif isinstance(value, str) and control_character(value, allowed="\n\t" if key.name == "description" else ""):
        raise UserError(f"{where}{key.name}: {_show(value)} holds a control character, or bytes that are not UTF-8")
    elif (isinstance(value, str) and value == "???") or not isinstance(
        value, (NoneType, bool, int, float, str)
    ):  # ??? is OmegaConf's "missing"
        raise wrong_type(key.name, value, where)


def _show(value: Any) -> str:
    text = "null" if value is None else "a mapping" if isinstance(value, dict) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check(config: Config) -> None:
    """Refuse values that no run could honour.

    Raises:
        UserError: One line that starts with the key.
    """
    for key in KEYS.values():
        _check_bounds(key, value_of(config, key.name))
    wandb = config.run.wandb
    if wandb.project is None and (wandb.entity or wandb.group or wandb.tags):
        raise UserError("run.wandb has no project; set run.wandb.project, or leave entity, group and tags out")
    if config.run.smoke and config.resume_from:
        raise UserError("run.smoke begins anew each time; leave resume_from out")
    if "/" in config.name or config.name.startswith("."):
        raise UserError(f"name: {config.name!r} becomes part of a folder's name; leave out / and a dot in front")
    for name, path in _paths(config):
        try:
            expanded(path)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    _check_arguments(config.model.args, "model.args")
    for name in ("images.scale", "images.ratio"):
        low, high = value_of(config, name)
        if low > high:
            raise UserError(f"{name} is a range, lowest first; it has {low} before {high}")
    for stage in ("warmup", "train"):
        _check_schedule(stage, getattr(config, stage))
    for name, instead in MODEL_ARGS_ELSEWHERE.items():
        if name in config.model.args:
            raise UserError(f"model.args.{name} is set by vitwarm; use {instead}")
    for name, value in config.model.args.items():
        within = "[0, 1)" if name.endswith(("drop_rate", "drop_path_rate")) else _MODEL_ARGS_WITHIN.get(name)
        if within and (isinstance(value, bool) or not isinstance(value, (int, float)) or not inside(value, within)):
            raise UserError(f"model.args.{name} must lie in {within}, not be {_show(value)}")
    if config.images.loss == "bce" and config.images.label_smoothing:
        raise UserError("images.label_smoothing smooths the targets of images.loss=ce; under bce set it to 0")
    if config.images.epochs_of == "full" and not config.images.subset:
        raise UserError("images.epochs_of=full is about a subset; set images.subset, or leave it at subset")
    _check_transfer(config)
    rule = rule_of(config.warmup.rule)
    if config.warmup.length is not None and config.warmup.objective != "next_state":
        try:
            rule.check_length(config.warmup.length)
        except ValueError as error:
            raise UserError(f"warmup.length: {error}") from error
    budget = Amount.parse(config.warmup.budget, "warmup.budget")
    _refuse_epochs(budget)
    for name, objective in (("mask_prob", "masked"), ("loss_on", "next_token")):
        key, given = KEYS[f"warmup.{name}"], getattr(config.warmup, name)
        if given != key.field.default and config.warmup.objective != objective:
            raise UserError(
                f"{key.name}={given} is for objective {objective}, not {config.warmup.objective}; leave it out"
            )
    _check_model(config)
    main = main_stage(config)
    _check_other_stages(config, main)
    if main is None:
        if budget.value == 0:
            asked = ", ".join(f"{name}.{section.asks}" for name, section in MAIN_STAGES.items())
            none = "" if config.images.epochs else "images.epochs is 0; "
            raise UserError(f"nothing to train: {none}set {asked} or warmup.budget")
        if budget.unit == "%":
            raise UserError("warmup.budget is a share of the main stage, but there is none; write samples")


def _paths(config: Config) -> Iterator[tuple[str, str]]:
    """Texts that may begin with somebody's home folder, with their keys."""
    for key in KEYS.values():
        if isinstance(value := value_of(config, key.name), str):
            yield key.name, value
    for groups, source in config.transfer.sources.items():
        yield f"transfer.sources.{groups}", str(source)


def _check_arguments(value: Any, name: str) -> None:
    """Refuse what no constructor means: words for true and false as text."""
    if isinstance(value, str) and value.lower() in ("true", "false", "yes", "no", "on", "off"):
        raise UserError(f"{name} is the text {value!r}, which counts as true whatever it says; write true or false")
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        _check_arguments(part, f"{name}.{key}")


def _check_model(config: Config) -> None:
    """Refuse keys that need a decoder without one, and keys of images with one."""
    decoder, warmup = config.model.decoder, config.warmup
    asked = {name: section for name, section in MAIN_STAGES.items() if getattr(getattr(config, name), section.asks)}
    if not decoder.size:
        if name := next((name for name, section in asked.items() if section.decoder), None):
            key = f"{name}.{asked[name].asks}"
            raise UserError(f"{key} needs a decoder; set model.decoder.size, such as 2_4_16 or 12_12_768")
        if warmup.objective == "next_token":
            raise UserError("warmup.objective=next_token needs a decoder; set model.decoder.size, such as 12_12_768")
        if name := next((name for name in ("tied", "dropout") if getattr(warmup, name) is not None), None):
            raise UserError(f"warmup.{name} is for decoders; leave it out, or set model.decoder.size")
        return
    if warmup.tied is not None and warmup.objective != "next_token":
        raise UserError(f"warmup.tied: objective {warmup.objective} has a head of its own kind; leave it out")
    if not re.fullmatch(r"[0-9]{1,3}_[0-9]{1,3}_[0-9]{1,5}", decoder.size):
        raise UserError(
            f"model.decoder.size: {decoder.size!r} is not DEPTH_HEADS_WIDTH, such as 12_12_768; in a recipe file put "
            "it in quotes"
        )
    if name := next((name for name, section in asked.items() if not section.decoder), None):
        raise UserError(f"a decoder reads no images; leave out {name}.{asked[name].asks} or model.decoder.size")
    if warms_up(config) and warmup.length is None and decoder.positions is None:
        raise UserError("warmup.length is missing: set it, or model.decoder.positions, to the tokens of a sequence")
    if config.algorithmic.requested():
        length = Amount.parse(config.algorithmic.budget, "algorithmic.budget")
        _refuse_epochs(length)
        if length.value == 0:
            raise UserError(
                f"algorithmic.budget={config.algorithmic.budget} is not a length; for a warm-up alone set "
                "algorithmic.task=null"
            )
    if config.text.requested():
        _check_text(config)
    if config.train.layer_decay is not None:
        raise UserError("train.layer_decay is for images; a decoder has none")
    for key, (_, given) in differences(Config(), config).items():
        filled = key == "model.num_classes" and given == ANY_CLASSES  # in a recipe that was read before
        if key.startswith(("model.name", "model.args", "model.num_classes", "images.")) and not filled:
            raise UserError(f"{key} is for images, which a decoder does not see; leave it out, or model.decoder.size")


def _check_other_stages(config: Config, main: str | None) -> None:
    """Refuse keys of main stages that the run does not have; without one they wait for it, as in a warm-up alone."""
    others = [other for other in MAIN_STAGES if main not in (None, other)]
    for name in differences(Config(), config) if others else ():
        if (other := name.partition(".")[0]) in others:
            raise UserError(f"{name} is for stage {other}, but the run's is {main}; leave one of them out")


def _check_text(config: Config) -> None:
    text = config.text
    if text.task == "language" and not text.val:
        raise UserError("text.val is missing: set the files that perplexity is measured on")
    if text.task != "language":
        for name, default in (("val", ""), ("field", "text"), ("heading", None)):
            if getattr(text, name) != default:
                own = "validation data" if name == "val" else "files"
                raise UserError(f"text.task={text.task} has {own} of its own; leave text.{name} out")
    predicts = text.task in ("language", "mathematics") or (warms_up(config) and not starts_from_given(config))
    if not predicts and not config.model.decoder.tied:
        raise UserError(f"text.task={text.task} predicts no tokens; leave model.decoder.tied out")
    if Amount.parse(text.budget, "text.budget").value == 0:
        raise UserError(f"text.budget={text.budget} is not a length; for a warm-up alone leave text.train empty")
    if text.heading is not None:
        try:
            re.compile(text.heading)
        except re.error as error:
            raise UserError(f"text.heading: {text.heading!r} is not a regular expression ({error})") from error


def main_stage(config: Config) -> str | None:
    """Name of the main stage that a recipe asks for; None for a warm-up alone.

    Raises:
        UserError: it asks for several.
    """
    names = [name for name in MAIN_STAGES if getattr(config, name).requested()]
    if len(names) > 1:
        asked = " or ".join(f"{name}.{MAIN_STAGES[name].asks}" for name in names)
        raise UserError(f"a run has one main stage; leave out {asked}")
    return names[0] if names else None


def warms_up(config: Config) -> bool:
    """Whether the recipe asks for a warm-up; `init_from` may still take its place."""
    return Amount.parse(config.warmup.budget, "warmup.budget").value > 0


def value_of(config: Config, name: str) -> Any:
    """The value under a full key such as `train.lr`."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def differences(a: Config, b: Config, ignore: Sequence[str] = ()) -> dict[str, tuple[Any, Any]]:
    """Keys in which two recipes differ, with both values; `ignore` holds keys and sections to leave out."""
    found = {}
    for key in KEYS:
        if not any(key == name or key.startswith(f"{name}.") for name in ignore):
            values = value_of(a, key), value_of(b, key)
            if values[0] != values[1]:
                found[key] = values
    return found


_MOST_NAMED, _SHOWN = 6, 60


def named_differences(before: Config, now: Config, ignore: Sequence[str] = ()) -> str:
    """Keys in which two recipes differ, in words: `train.lr was 0.001, now 0.5`; of many the first."""
    changes: list[str] = []
    for name, (old, new) in differences(before, now, ignore).items():
        _name_changes(name, old, new, changes)
    more = len(changes) - _MOST_NAMED
    return "; ".join(changes[:_MOST_NAMED] + ([f"and {more} more"] if more > 0 else []))


def _name_changes(name: str, old: Any, new: Any, changes: list[str]) -> None:
    if isinstance(old, dict) and isinstance(new, dict):
        for part in dict.fromkeys([*old, *new]):
            if old.get(part) != new.get(part):
                _name_changes(f"{name}.{part}", old.get(part), new.get(part), changes)
        return
    old, new = (without_secrets(json.dumps(value, ensure_ascii=False)) for value in (old, new))
    if old != new:  # a frozen recipe has none
        start = max(0, len(os.path.commonprefix([old, new])) - _SHOWN // 2) if max(len(old), len(new)) > _SHOWN else 0
        before, now = (f"{'...' if start else ''}{text[start:][:_SHOWN]}" for text in (old, new))
        changes.append(f"{name} was {before}, now {now}")


def _check_bounds(key: Key, value: Any) -> None:
    count, within = key.field.metadata["count"], key.field.metadata["within"]
    if count is not None and value is not None and len(value) != count:
        raise UserError(f"{key.name} takes {count} values, not {len(value)}")
    if within is None:
        return
    for number in value if isinstance(value, list) else [value]:
        if number is not None and not inside(number, within):
            raise UserError(f"{key.name} must lie in {within}, not be {number}")


def inside(number: float, within: str) -> bool:
    """Whether a finite number lies in an interval such as `[0, 1)`."""
    interval = re.fullmatch(r"([\[(])(.+), (.+)([\])])", within)
    assert interval is not None
    opening, low, high, closing = interval.groups()
    if isinstance(number, int) and abs(number) >= 10**40:  # no float holds it
        return False
    above = number >= float(low) if opening == "[" else number > float(low)
    below = number <= float(high) if closing == "]" else number < float(high)
    return above and below and math.isfinite(number)


def _check_schedule(stage: str, optim: OptimConfig) -> None:
    for name in ("start_lr", "min_lr"):
        if getattr(optim, name) > optim.lr:
            raise UserError(f"{stage}.{name} ({getattr(optim, name)}) is above the peak, {stage}.lr ({optim.lr})")
    lengths = [Amount.parse(getattr(optim, name), f"{stage}.{name}") for name in ("lr_warmup", "cooldown")]
    if stage == "warmup":
        for length in lengths:
            _refuse_epochs(length)
    if optim.schedule == "wsd" and all(part.unit == "%" for part in lengths) and sum(p.value for p in lengths) > 100:
        raise UserError(f"{stage}.lr_warmup and {stage}.cooldown together exceed 100% of the stage")


def starts_from_given(config: Config) -> bool:
    """Whether weights that exist already take the place of a warm-up."""
    return bool(config.init_from or config.transfer.sources)


def _check_transfer(config: Config) -> None:
    """Refuse groups, sources and controls that no model could honour; the model itself may still refuse more."""
    groups, sources, controls = config.transfer.groups, config.transfer.sources, config.transfer.controls
    if not groups:
        raise UserError("transfer.groups is empty: nothing would be transferred; for no warm-up write warmup.budget=0")
    frozen, factors = config.train.freeze, config.train.lr_factors
    for name, selections in (
        ("transfer.groups", [groups]),
        ("transfer.sources", sources),
        ("transfer.controls", controls),
        ("train.freeze", [frozen] if frozen else []),
        ("train.lr_factors", factors),
    ):
        for words in selections:
            try:
                chosen = Selection.parse(words)
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
            if chosen.heads and name.startswith("train."):
                raise UserError(f"{name}: single heads share their tensors with others; name whole tensors")
    for words, factor in factors.items():
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
            raise UserError(f"train.lr_factors.{words} is a number above 0, not {_show(factor)}; 0 is train.freeze")
    for words, text in controls.items():
        try:
            parse_control(text)
        except UserError as error:
            raise UserError(f"transfer.controls.{words}: {error}") from error
    if bad := next((words for words, source in sources.items() if not isinstance(source, str)), None):
        raise UserError(f"transfer.sources.{bad}: expected a folder or a .safetensors file, got {_show(sources[bad])}")
    for name, several in (("transfer.sources", sources), ("transfer.controls", controls)):
        try:
            check_overlap(several)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    if sources and config.init_from:
        raise UserError("transfer.sources takes the place of init_from; leave one of them out")
    if sources and groups != ["trunk"]:
        raise UserError("transfer.sources names its own groups; leave transfer.groups out")
    if config.transfer.fit != "exact" and not starts_from_given(config):
        raise UserError(f"transfer.fit={config.transfer.fit} is about given weights; set init_from or transfer.sources")
    if controls and not starts_from_given(config) and not warms_up(config):
        raise UserError("transfer.controls has no source to perturb: set warmup.budget, init_from or transfer.sources")


def _refuse_epochs(amount: Amount) -> None:
    if amount.unit == "epochs":
        raise UserError(f"{amount.key}: a rule's stream has no epochs; write samples, tokens, steps or a share")


def rule_spec(rule: Any) -> dict[str, Any]:
    """A rule as a recipe describes it, of what a person gives in Python: a name, a mapping with the name, or a `Rule`.

    Raises:
        UserError: anything else, or a `Rule` of a class that the registry does not have under its name.
    """
    if isinstance(rule, Rule):
        spec = rule.spec()
        if rule_of(spec) != rule:
            raise UserError(f"{type(rule).__name__} is not the rule {rule.name!r}; register it under a name of its own")
        return spec
    if isinstance(rule, Mapping) and "name" in rule:
        return dict(rule)
    if isinstance(rule, str):
        return {"name": rule}
    raise UserError(f"rule is {_show(rule)}; give a name such as 'dyck', or {{'name': 'dyck', 'k': 64}}")


def rule_of(spec: dict[str, Any]) -> Rule:
    """The rule that a recipe describes.

    Raises:
        UserError: Unknown rule, unknown or impossible parameter.
    """
    if not isinstance(spec.get("name"), str):
        raise UserError(f"warmup.rule.name is missing; it is one of {', '.join(list_rules())}")
    try:
        return make_rule(**spec)
    except (TypeError, ValueError) as error:
        raise UserError(f"warmup.rule: {error}") from error
