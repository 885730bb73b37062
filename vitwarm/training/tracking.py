"""Where a run speaks: log.jsonl, the terminal, TensorBoard and Weights & Biases. Main process only."""

import contextlib
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError
from torch import nn
from tqdm import tqdm

from vitwarm.config import RunConfig, WandbConfig
from vitwarm.errors import UserError, shown
from vitwarm.files import own_file

TENSORBOARD = "tensorboard"  # folder of its events in a run folder


class Tracker:
    """Writes every record to log.jsonl and shows it.

    Args:
        folder: run folder; None writes no log.
        log_bytes: cut log.jsonl at this length first, so that a resumed run's log has each step once.
        run_step: optimiser steps that the run has done; TensorBoard likewise drops what lies behind them.
        tensorboard: also write TensorBoard events.
        wandb: also log to Weights & Biases, if it names a project.
        config: what Weights & Biases is told of the run: the resolved recipe, its name as `recipe`, its `hash`.
        active: False on all but the main process.
        listeners: get each record as well.
        lines: show what is said on the terminal.
        bar: show a progress bar; None shows one on a terminal only.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        log_bytes: int = 0,
        run_step: int = 0,
        tensorboard: bool = False,
        wandb: WandbConfig | None = None,
        config: dict[str, Any] | None = None,
        active: bool = True,
        listeners: Iterable[Callable[[dict[str, Any]], None]] = (),
        lines: bool = True,
        bar: bool | None = None,
    ):
        self.active, self.lines, self.show_bar = active, lines, bar
        self.bar: tqdm | None = None
        self._sinks = list(listeners)
        self._file: BinaryIO | None = None
        if not active or folder is None:
            return
        self._path = folder / "log.jsonl"
        self._file = open(self._path, "ab", opener=own_file)  # noqa: SIM115 (lives as long as the run)
        self._file.truncate(min(log_bytes, self._file.seek(0, os.SEEK_END)))  # truncate would also lengthen it
        if tensorboard:
            self._sinks.append(_tensorboard(folder, run_step))
        if wandb is not None and wandb.project:
            self._sinks.append(_wandb(wandb, folder, config or {}))

    def check_folder(self) -> None:
        """Refuse to write into a run folder that is no longer the one in which the run began.

        Raises:
            UserError: it was removed, moved or replaced.
        """
        if self._file is None:
            return
        try:
            same = os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            same = False
        if not same:
            raise UserError(
                f"{self._path.parent} was removed or moved while the run wrote to it; nothing was made anew: put it "
                "back and run the same command to resume"
            )

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """While inside, something else is written into the run folder; see `check_folder`."""
        self.check_folder()
        try:
            yield
        except (OSError, SafetensorError):
            self.check_folder()  # which tells more
            raise

    @property
    def bytes(self) -> int:
        """Length of the log in bytes, after it was flushed to disk; see `check_folder`."""
        if self._file is None:
            return 0
        self.check_folder()
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def record(self, entry: dict[str, Any], show: str | None = None) -> None:
        """Append one JSON object; `show` is its line for the terminal."""
        if not self.active:
            return
        self.check_folder()
        if self._file is not None:
            self._file.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
            self._file.flush()
        for sink in self._sinks:
            sink(entry)
        if show:
            self.say(show)

    def say(self, text: str) -> None:
        """Show a line on the terminal, above the progress bar."""
        if self.active and self.lines:
            tqdm.write(shown(text), file=sys.stdout)
            sys.stdout.flush()

    def warn(self, text: str) -> None:
        if self.active:
            tqdm.write(f"vitwarm: warning: {shown(text)}", file=sys.stderr)

    def start_stage(self, name: str, step: int, steps: int) -> None:
        """Show the progress bar of a stage."""
        if self.active and (sys.stderr.isatty() if self.show_bar is None else self.show_bar):
            self.bar = tqdm(total=steps, initial=step, desc=name, unit="step", dynamic_ncols=True, leave=False)

    def advance(self) -> None:
        if self.bar is not None:
            self.bar.update()

    @contextlib.contextmanager
    def evaluating(self, model: nn.Module, batches: int) -> Iterator[None]:
        """While inside, show a second progress bar, of an evaluation: each call of the model is a batch of it."""
        if self.bar is None:
            yield
            return
        name = f"{self.bar.desc} evaluation"
        with tqdm(total=batches, desc=name, unit="batch", dynamic_ncols=True, leave=False) as bar:

            def advance(*_: Any) -> None:
                bar.update()

            hook = model.register_forward_hook(advance)
            try:
                yield
            finally:
                hook.remove()

    def end_stage(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def close(self) -> None:
        self.end_stage()
        if self._file is not None:
            self._file.close()


def evaluations(log: Path, size: int) -> list[dict[str, Any]]:
    """The evaluations in the first `size` bytes of a log.jsonl."""
    with open(log, "rb") as file:
        entries = [json.loads(line) for line in file.read(size).splitlines()]
    return [entry for entry in entries if entry["event"] == "eval"]


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    prefix = f"{entry['stage']}/" if entry.get("event") == "train" else f"{entry.get('stage')}/{entry.get('event')}/"
    skip = {"step", "run_step"}
    return {prefix + k: v for k, v in entry.items() if isinstance(v, int | float) and k not in skip}


def check_trackers(run: RunConfig) -> None:
    """Refuse trackers that are not installed.

    Raises:
        UserError: with the command that installs them.
    """
    for package, wanted in (("tensorboard", run.tensorboard), ("wandb", run.wandb.project)):
        if wanted and importlib.util.find_spec(package) is None:
            raise UserError(f"run.{package} needs {package}: pip install 'vitwarm[{package}]'")


def _tensorboard(folder: Path, run_step: int) -> Callable[[dict[str, Any]], None]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / TENSORBOARD), purge_step=run_step + 1)

    def sink(entry: dict[str, Any]) -> None:
        if "run_step" in entry:
            for name, value in _numbers(entry).items():
                writer.add_scalar(name, value, entry["run_step"])
            writer.flush()

    return sink


def _wandb(settings: WandbConfig, folder: Path, config: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    import wandb

    # A resumed run finds its curve again by an id that follows from the folder and what may not change in it.
    fixed = {name: config.get(name) for name in ("recipe", "hash", "seed")}
    identity = hashlib.sha256(f"{folder.resolve()} {fixed}".encode()).hexdigest()[:16]
    where = {"dir": str(folder), "name": folder.name, "id": identity, "resume": "allow"}
    try:
        run = wandb.init(**asdict(settings), **where, config=config)
    except Exception as error:  # no login, no network, no such project: theirs to say
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(f"Weights & Biases does not start: {reason}; log in, or set run.wandb=null") from error

    def sink(entry: dict[str, Any]) -> None:
        if "run_step" in entry:
            run.log(_numbers(entry), step=entry["run_step"])

    return sink
