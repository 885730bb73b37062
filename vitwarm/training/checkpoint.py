"""Checkpoints of a run: safetensors and JSON, whole or absent, checked when read.

    checkpoints/step-00012000/
        model.safetensors      the stage's model
        optimizer.safetensors  tensors of the optimiser, `PARAMETER/exp_avg` ...
        ema.safetensors        the moving average, when there is one
        state.json             stage, step, recipe hash, totals, log position, sha256 of the files above and of itself

Random states are absent on purpose: every random decision is a pure function of (seed, step, rank).
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitwarm.errors import UserError
from vitwarm.files import sha256_of, whole_folder, write_text
from vitwarm.reading import read_json
from vitwarm.training.sharding import split_like

FORMAT = 2  # 1, of version 0.1, had no checksum of state.json


@dataclass
class State:
    """The state of a run apart from its tensors.

    Attributes:
        stage: stage in progress.
        step: optimiser steps of that stage that are done.
        run_step: optimiser steps of all stages that are done; names the folder.
        recipe_hash: of the recipe that the run follows.
        log_bytes: length of log.jsonl at this point; a resumed run cuts it there.
        totals: of the stage so far: samples, tokens, seconds, flops.
        results: stage -> outcome, for the stages that are over.
        metrics: of the last evaluation.
        best: {metric value, run_step, metrics} of the best evaluation so far, or None.
        damaged: names of the distinct samples that could not be read so far.
        steady: a wsd schedule has not begun to fall, so that runs of other lengths pass through this point as well.
        optimizer: `optimizer_values`; empty for AdamW, which keeps tensors only.
    """

    stage: str
    step: int
    run_step: int
    recipe_hash: str
    log_bytes: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    damaged: list[str] = field(default_factory=list)
    steady: bool = False
    optimizer: dict[str, Any] = field(default_factory=dict)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Tensors of the optimiser's state as {`PARAMETER/ENTRY`: tensor}, split as the parameters are."""
    names: dict[Tensor, str] = {p: n for n, p in model.named_parameters()}
    return {
        f"{names[p]}/{entry}": value.detach()
        for p, state in _state(optimizer).items()
        for entry, value in state.items()
        if isinstance(value, Tensor)
    }


def optimizer_values(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What an optimiser keeps besides the tensors of its parameters, as plain values.

    Returns:
        `parameters`: {parameter: {entry: value}}; `groups`: {entry: value} for each parameter group, where a tensor
        of one number is {`dtype`, `value`}. Each is left out where nothing is kept.

    Raises:
        UserError: it keeps something that JSON does not give back as it was.
    """
    names: dict[Tensor, str] = {p: n for n, p in model.named_parameters()}
    parameters = {
        names[p]: own
        for p, state in _state(optimizer).items()
        if (own := {e: _plain(e, value) for e, value in state.items() if not isinstance(value, Tensor)})
    }
    groups = [
        {entry: _plain(entry, value) for entry, value in group.items() if _is_state(entry, value, optimizer)}
        for group in optimizer.param_groups
    ]
    return ({"parameters": parameters} if parameters else {}) | ({"groups": groups} if any(groups) else {})


def restore_optimizer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, Tensor],
    values: dict[str, Any],
) -> None:
    """Put `optimizer_tensors` and `optimizer_values` back; step counts stay where the optimiser keeps them."""
    parameters, state = dict(model.named_parameters()), _state(optimizer)
    on_device = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
    for full, value in tensors.items():
        name, entry = full.rsplit("/", 1)
        p = parameters[name]
        if value.ndim:
            state[p][entry] = split_like(value, p)
        else:
            state[p][entry] = value.to("cpu" if entry == "step" and not on_device else p.device)
    for name, own in values.get("parameters", {}).items():
        state[parameters[name]].update(own)
    for group, own in zip(optimizer.param_groups, values.get("groups", []), strict="groups" in values):
        group.update({entry: _read(value) for entry, value in own.items()})


def _state(optimizer: torch.optim.Optimizer) -> dict[Tensor, dict[str, Any]]:
    """Parameter -> what the optimiser keeps for it; timm's Lookahead keeps it within the optimiser that it wraps."""
    return getattr(optimizer, "_base_optimizer", optimizer).state


_GIVEN = ("params", "lr", "weight_decay", "lr_scale", "use_fallback")  # entries of a group that the recipe sets


def _is_state(entry: str, value: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Whether an entry of a parameter group has come about in training: it is not what the group began with."""
    if entry in _GIVEN:
        return False
    begun = optimizer.defaults.get(entry, _GIVEN)
    return type(begun) is not type(value) or bool(begun != value)


def _plain(entry: str, value: Any) -> Any:
    if isinstance(value, Tensor) and value.ndim == 0 and value.device.type == "cpu":
        return {"dtype": str(value.dtype).removeprefix("torch."), "value": value.item()}
    parts = value if isinstance(value, list) else [value]
    if all(part is None or type(part) in (bool, int, float, str) for part in parts):
        return value
    raise UserError(f"keeps a {type(value).__name__} as {entry}, which a checkpoint does not hold; choose another")


def _read(value: Any) -> Any:
    return torch.tensor(value["value"], dtype=getattr(torch, value["dtype"])) if isinstance(value, dict) else value


class Checkpoints:
    """The `checkpoints/` folder of a run.

    Args:
        folder: the folder; made on the first save.
        keep_last: how many of the newest to keep besides the best one.
        keep_at: steps of the run whose checkpoints are kept as well.
    """

    def __init__(self, folder: Path, keep_last: int, keep_at: Sequence[int] = ()):
        self.folder, self.keep_last, self.keep_at = folder, keep_last, keep_at

    def path(self, run_step: int) -> Path:
        return self.folder / f"step-{run_step:08d}"

    def save(self, state: State, tensors: dict[str, dict[str, Tensor]]) -> Path:
        """Write a whole checkpoint, then drop what is no longer kept.

        Args:
            state: is stored as it is.
            tensors: {`model` | `optimizer` | `ema`: {name: tensor}}.
        """
        target = self.path(state.run_step)
        self.folder.mkdir(exist_ok=True)  # but not the run's folder, if that is gone
        with whole_folder(target) as aside:  # one that is there is damaged, and this run has passed it over
            self._write(aside, state, tensors)
        self._prune(state)
        return target

    def _write(self, aside: Path, state: State, tensors: dict[str, dict[str, Tensor]]) -> None:
        sums = {}
        for name, group in tensors.items():
            file = aside / f"{name}.safetensors"
            save_file({n: t.contiguous() for n, t in group.items()}, file)
            sums[file.name] = sha256_of(file)
        write_text(aside / "state.json", _sealed({"format": FORMAT, **asdict(state), "files": sums}))

    def _prune(self, state: State) -> None:
        now = self.path(state.run_step)
        others = [self.path(step) for step in (*self.keep_at, *([state.best["run_step"]] if state.best else []))]
        # What lies ahead of this step was found damaged when the run resumed from an earlier one.
        ahead = [p for p in self.all() if p > now]
        kept = [p for p in self.all() if p <= now][-self.keep_last :]
        for old in self.all():
            if old in ahead or old not in (*kept, *others):
                _remove(old)

    def all(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("step-*") if (p / "state.json").is_file())

    def newest(self, warn: Callable[[str], None]) -> tuple[State, Path] | None:
        """The newest checkpoint whose checksums hold; damaged ones are named through `warn` and passed over.

        Raises:
            UserError: it was written by another version.
        """
        for path in reversed(self.all()):
            try:
                return read_state(path), path
            except Damaged as error:
                warn(f"{error}; using the one before it")
        return None

    def set_aside(self, after: Path | None) -> None:
        """Rename the damaged ones behind `after` (None: all) to `damaged-step-...`, so that no start meets them."""
        for path in self.all():
            if after is None or path > after:
                aside = path.with_name(f"damaged-{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)


class Damaged(UserError):
    """A checkpoint whose checksums do not hold."""


_KINDS = {f.name: get_args(f.type) if isinstance(f.type, UnionType) else (f.type,) for f in fields(State)}


def read_state(path: Path) -> State:
    """State of a checkpoint folder, after its checksums were compared.

    Raises:
        Damaged: something of it is not what was written.
        UserError: it was written by another version.
    """
    try:
        content = read_json(path / "state.json", format=int, files=dict, run_step=int)
    except UserError as error:
        raise Damaged(f"checkpoint {path} is damaged ({error})") from error
    if not 1 <= content["format"] <= FORMAT:
        raise UserError(f"checkpoint {path} was written by another version of vitwarm; use that version")
    try:
        if content["format"] > 1 and content.get("sha256") != _sum(content):
            raise Damaged("state.json differs from its checksum")
        if path.resolve().name != f"step-{content['run_step']:08d}":
            raise Damaged(f"state.json is that of step {content['run_step']}")
        for name in ("format", "sha256"):
            content.pop(name, None)
        files = content.pop("files")
        for name, value in content.items():
            if type(value) not in [get_origin(kind) or kind for kind in _KINDS.get(name, ())]:
                raise Damaged(f"state.json: {name} is {type(value).__name__}")
        state = State(**content)
        for name, expected in files.items():
            if Path(name).name != name or not (path / name).is_file() or sha256_of(path / name) != expected:
                raise Damaged(f"{name} differs from its checksum")
    except (Damaged, TypeError) as error:  # TypeError: a key is missing
        raise Damaged(f"checkpoint {path} is damaged ({error})") from error
    return state


def _sum(content: dict[str, Any]) -> str:
    kept = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _sealed(content: dict[str, Any]) -> str:
    """The text of state.json, with a checksum of itself."""
    content = json.loads(json.dumps(content, allow_nan=False))
    return json.dumps(content | {"sha256": _sum(content)})


def relabel(path: Path, recipe_hash: str) -> None:
    """Give a copied checkpoint to the run of another recipe."""
    content = read_json(path / "state.json") | {"recipe_hash": recipe_hash, "format": FORMAT}
    write_text(path / "state.json", _sealed(content))


def read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """One of a checkpoint's tensor files; empty when the checkpoint has none of that name."""
    file = path / f"{name}.safetensors"
    return load_file(file) if file.exists() else {}


def _remove(path: Path) -> None:
    """Delete a checkpoint so that a kill in between leaves nothing that looks whole."""
    gone = path.with_name(f".{path.name}.old")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
