"""A run's folder: whose it is, what may be in it, and how a run begins to write there."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitwarm.amounts import Amount
from vitwarm.checks import KEYS, LENGTHS, named_differences, value_of
from vitwarm.config import Config
from vitwarm.data.subset import SUBSET
from vitwarm.errors import UserError, shown
from vitwarm.exports.layout import CHECKPOINTS, EXPORT, WARMUP, require_replaceable
from vitwarm.files import copy_plain, expanded, locked, whole_folder, write_text
from vitwarm.reading import read_json, read_text
from vitwarm.recipe import SMOKE, freeze, frozen_hash, read_frozen, recipe_hash
from vitwarm.training.checkpoint import Checkpoints, State, read_state, relabel
from vitwarm.training.tracking import TENSORBOARD

RECIPE, LOG, RESULT, LOCK = "recipe.yaml", "log.jsonl", "result.json", ".lock"
DATA = "data.json"  # what the main stage reads
_OURS = (RECIPE, LOG, RESULT, CHECKPOINTS, LOCK, DATA, SUBSET, WARMUP, EXPORT, TENSORBOARD)
_FREE = ("name", "description", "resume_from", *(key for key in KEYS if key[:4] == "run." and key != "run.smoke"))
_TAKEN = "another process is carrying out the run in {}; wait for it, or end it"
_LAUNCHERS = (".out", ".err", ".log")  # endings of what a launcher writes before the run begins, as Slurm's --output


def run_folder(config: Config) -> Path:
    """Where the run of a recipe lives: `run.dir`, or runs/RECIPE-seedSEED; under `run.smoke` beside it."""
    folder = expanded(config.run.dir or f"runs/{config.name}-seed{config.seed}")
    if not config.run.smoke:
        return folder
    folder = folder if folder.name else folder.resolve()  # `.` has a name as well
    return folder.with_name(f"{folder.name}{SMOKE}")


def has_checkpoint(folder: Path, config: Config) -> bool:
    """Whether a run has begun there, so that it resumes; damaged checkpoints count as well. A smoke run begins anew."""
    return not config.run.smoke and any((folder / CHECKPOINTS).glob("step-*"))


def is_finished(folder: Path, config: Config) -> bool:
    """Whether a run has ended there. A smoke run begins anew."""
    return not config.run.smoke and (folder / RESULT).exists()


def check_folder(folder: Path, config: Config) -> None:
    """Refuse, before anything is written, a folder that holds another run, or a `resume_from` that does not fit."""
    frozen = folder / RECIPE
    if prepared := next((folder / name for name in _OURS if not _is_plain(folder / name)), None):
        raise UserError(f"{prepared} is a link or no plain file; a run folder holds its files itself: remove it")
    if not frozen.exists():
        if folder.exists() and (not folder.is_dir() or any(not _may_precede(p) for p in folder.iterdir())):
            raise UserError(f"{folder} exists and is not a run folder; choose another run.dir")
    elif not _holds_smoke(folder, config):
        theirs = read_frozen(frozen)
        if recipe_hash(theirs) != recipe_hash(config):
            raise UserError(
                f"{folder} holds a run of another recipe: {named_differences(theirs, config, _FREE)}; choose "
                "another run.dir, or remove that folder to start over"
            )
    if (folder / EXPORT).exists() and not is_finished(folder, config):
        require_replaceable(folder / EXPORT)  # not only at the end of training
    if config.resume_from and not has_checkpoint(folder, config):
        _adoptable(config)


def _holds_smoke(folder: Path, config: Config) -> bool:
    """Whether a smoke run finds the last one there, which it replaces."""
    return config.run.smoke and (folder / RECIPE).is_file() and frozen_hash(folder / RECIPE).endswith(SMOKE)


def _is_plain(path: Path) -> bool:
    return not path.is_symlink() and (path.is_file() or path.is_dir() or not path.exists())


def _may_precede(path: Path) -> bool:
    """Whether something in a folder does not keep a run from beginning there."""
    return path.name[0] == "." or (path.suffix in _LAUNCHERS and path.is_file())


def open_folder(folder: Path, config: Config, held: contextlib.ExitStack, steady_steps: int) -> None:
    """Create the run folder, or clear what a kill or the last smoke run left; bring in `resume_from`.

    Args:
        folder: of the run.
        config: its recipe.
        held: keeps the folder ours until it is closed, or the process ends.
        steady_steps: of the main stage, before its learning rate falls; a branch must begin there.

    Raises:
        UserError: another process is carrying out this run, or it cannot branch off where `resume_from` says.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError) as error:  # a link to what is not mounted; /proc
        raise UserError(f"run.dir: cannot make {folder}: {error.strerror} ({error.filename})") from error
    # A launcher that was killed can leave its process at work; two in one folder would overwrite each other's files.
    held.enter_context(locked(folder / LOCK, _TAKEN.format(folder)))
    replaced = [name for name in _OURS if name != LOCK] if _holds_smoke(folder, config) else []
    before = [folder / name for name in replaced if (folder / name).exists()]
    asides = [folder / f".{name}.{end}" for name in _OURS for end in ("tmp", "old")]  # hidden files of others stay
    for left in [*before, *asides, *folder.glob(f"{CHECKPOINTS}/.*")]:
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    frozen = folder / RECIPE
    if not frozen.exists() or frozen_hash(frozen) == recipe_hash(config):
        write_text(frozen, freeze(config))  # else of another version: it keeps the hash that its checkpoints bear
    if config.resume_from and not has_checkpoint(folder, config):
        _adopt(folder, config, steady_steps)


def newest_checkpoint(folder: Path, config: Config, warn: Callable[[str], None]) -> tuple[State, Path] | None:
    """The newest whole checkpoint of a run; None starts from the beginning.

    Raises:
        UserError: it belongs to another recipe.
    """
    checkpoints = Checkpoints(folder / CHECKPOINTS, config.run.keep_last)
    found = checkpoints.newest(warn)
    checkpoints.set_aside(found[1] if found else None)
    if found and not _is_of(found[0], folder, config):
        raise UserError(f"{found[1]} belongs to another recipe; choose another run.dir")
    return found


def record_data(folder: Path, read: dict[str, str], files: dict[str, str]) -> None:
    """Write what a run reads, which must not change until the run ends.

    Args:
        folder: of the run.
        read: what was read -> its digest or size; see `MainStage.data_read`.
        files: further files of the folder, name -> text.

    Raises:
        UserError: the run began with something else, because the data or a list of names have changed since.
    """
    if (folder / DATA).exists():
        began = read_json(folder / DATA)
        if changed := [name for name in [*began, *read] if began.get(name) != read.get(name)]:
            before, now = (found.get(changed[0], "none") for found in (began, read))
            raise UserError(
                f"the data are no longer those of {folder / DATA}, with which this run began: {changed[0]} was "
                f"{before}, now {now}; restore the data, or choose another run.dir"
            )
    for name, text in files.items():
        file = folder / name
        if file.exists() and read_text(file) != text:
            raise UserError(
                f"the data are no longer those of {file}, with which this run began; restore them (shards, lists), or "
                "choose another run.dir"
            )
        write_text(file, text)
    if read:
        write_text(folder / DATA, json.dumps(read, indent=1) + "\n")


def read_result(folder: Path) -> dict[str, Any]:
    """What stands in a finished run's result.json.

    Raises:
        UserError: it is damaged.
    """
    try:
        return read_json(folder / RESULT, recipe=str, recipe_hash=str, seed=int, start=str, metrics=dict, stages=dict)
    except UserError as error:
        raise UserError(f"{error}; remove the file, and the same command writes it again") from error


def warn(text: str) -> None:
    """Show a warning on the terminal before the run's tracker is there."""
    print(f"vitwarm: warning: {shown(text)}", file=sys.stderr, flush=True)


def _is_of(state: State, folder: Path, config: Config) -> bool:
    """Whether a checkpoint of the run in a folder is one of this recipe.

    Another version of the package may know other keys and give the same recipe another hash; then the recipe in the
    folder, under the hash that it began with and under ours, tells.
    """
    ours, frozen = recipe_hash(config), folder / RECIPE
    if state.recipe_hash == ours:
        return True
    return frozen.is_file() and state.recipe_hash == frozen_hash(frozen) and ours == recipe_hash(read_frozen(frozen))


def _adoptable(config: Config) -> tuple[State, Path, Path]:
    """The checkpoint that `resume_from` names, its folder, and the run folder that it belongs to."""
    assert config.resume_from is not None
    source = expanded(config.resume_from).absolute()
    is_checkpoint = (source / "state.json").is_file()
    owner = source.parent.parent if is_checkpoint else source
    found = (read_state(source), source) if is_checkpoint else Checkpoints(owner / CHECKPOINTS, 1).newest(warn)
    if found is None:
        raise UserError(f"resume_from: no whole checkpoint in {source}; give a run folder or one of its checkpoints")
    state, path = found
    if not (owner / RECIPE).is_file():
        raise UserError(f"resume_from: {path} lies outside of its run, whose recipe and log it needs; give the run")
    if not _is_of(state, owner, config) and (why := _no_branch(state, owner, config)):
        raise UserError(
            f"resume_from: {path} belongs to another recipe (hash {state.recipe_hash}, now {recipe_hash(config)}), "
            f"{why}; use init_from to start from its weights instead"
        )
    return state, path, owner


def _no_branch(state: State, owner: Path, config: Config) -> str:
    """Why a run of another length cannot resume from this checkpoint as if it were its own; empty if it can.

    Runs that differ only in the length of their main stage are the same run until it begins, and under a wsd schedule
    until the first of them cools down.
    """
    shared = (*_FREE, *LENGTHS.values(), "train.cooldown")
    if others := named_differences(read_frozen(owner / RECIPE), config, shared):
        return f"in which {others}"
    if state.stage != WARMUP and not state.steady:
        return "and to branch off it, its main stage must be in the steady part of train.schedule=wsd"
    for key in ("warmup.budget", "train.lr_warmup")[: 1 if state.stage == WARMUP else 2]:
        amount = Amount.parse(value_of(config, key), key)
        if amount.unit == "%" and amount.value:
            return f"and to branch off it, {key} must not be a share of the main stage; write steps"
    return ""


def _adopt(folder: Path, config: Config, steady_steps: int) -> None:
    """Copy the checkpoint of another run, with its log and warm-up, and make it ours; the checkpoint comes last."""
    state, path, owner = _adoptable(config)
    branches = not _is_of(state, owner, config)
    if branches and state.stage != WARMUP and state.step > steady_steps:
        raise UserError(
            f"resume_from: {path} is at step {state.step}, but this run is steady for {steady_steps} steps only; "
            "give an earlier checkpoint, or a shorter train.cooldown"
        )
    for name in (WARMUP, LOG, SUBSET, DATA):
        if os.path.lexists(owner / name):
            copy_plain(owner / name, folder / name)
    with whole_folder(folder / CHECKPOINTS / path.name) as aside:
        copy_plain(path, aside)
        if state.recipe_hash != recipe_hash(config):
            relabel(aside, recipe_hash(config))
