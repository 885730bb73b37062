"""Many seeds on a CPU: a plain run each, in a process of its own, as many at once as there are cores.

Stacking their weights (`vitwarm.stages.ensemble`) pays on a GPU, which one tiny model leaves idle. Processes keep cores
busy as well, and run the losses of tiny decoders in compiled code.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitwarm.config import Config
from vitwarm.errors import Interrupted, UserError
from vitwarm.parallel import cores
from vitwarm.run import members_of
from vitwarm.run_folder import read_result, run_folder


def run_seeds(
    config: Config, recipe: str, overrides: Mapping[str, str], seeds: Sequence[int], stop: list[int]
) -> list[dict[str, Any]]:
    """Carry out a recipe under several seeds, or resume them; each is what `vitwarm train` makes of it.

    What a seed says goes to `RUN_FOLDER.log`. When one fails, or a signal comes, the others save a checkpoint and end.

    Args:
        config: the recipe; `{seed}` in `init_from` and `transfer.sources` stands for the seed.
        recipe: as after `recipe=`.
        overrides: further words of the command line.
        seeds: one or more, each once.
        stop: signals that came so far.

    Returns:
        What stands in each seed's result.json.

    Raises:
        UserError: what the first seed that failed said last; a launcher of several processes.
        Interrupted: a signal; the same command resumes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("an ensemble of seeds starts its processes itself; run `vitwarm ensemble` without a launcher")
    members = members_of(config, seeds)
    waiting, running = list(members), dict[subprocess.Popen[bytes], Config]()
    jobs = min(cores(), len(members))
    threads = cores() // jobs
    failed: Config | None = None
    code = 0
    while running or (waiting and not stop and failed is None):
        while waiting and len(running) < jobs and not stop and failed is None:
            member = waiting.pop(0)
            running[_start(member, recipe, overrides, threads)] = member
        if stop or failed is not None:
            for process in running:
                process.terminate()
        for process in [p for p in running if p.poll() is not None]:
            member = running.pop(process)
            print(f"seed {member.seed}: {'finished' if process.returncode == 0 else 'ended'}", flush=True)
            if process.returncode and not stop and failed is None:  # of those that were told to end no code counts
                failed, code = member, process.returncode
        time.sleep(0.1)
    if failed is not None:
        said = _log(failed).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        told = said[-1].removeprefix("vitwarm: error: ") if code > 0 and said else ended
        raise UserError(f"seed {failed.seed}: {told}")
    if stop:
        raise Interrupted("stopped by a signal")
    return [read_result(run_folder(member)) for member in members]


def _log(member: Config) -> Path:
    folder = run_folder(member)
    return folder.with_name(f"{folder.name}.log")


def _start(member: Config, recipe: str, overrides: Mapping[str, str], threads: int) -> "subprocess.Popen[bytes]":
    own = {"seed": str(member.seed), "run.dir": str(member.run.dir)}
    if member.init_from:
        own["init_from"] = member.init_from
    if member.transfer.sources:
        own["transfer.sources"] = json.dumps(member.transfer.sources)
    others = {key: value for key, value in overrides.items() if not key.startswith("transfer.sources")}
    words = [f"{key}={value}" for key, value in (others | own).items()]
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ | {"VITWARM_SEED_OF": str(os.getpid())}
    print(f"seed {member.seed}: {run_folder(member)}, see {_log(member)}", flush=True)
    _log(member).parent.mkdir(parents=True, exist_ok=True)
    with open(_log(member), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "vitwarm", "train", f"recipe={recipe}", *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a signal to our group comes from us alone, or it would count twice
        )
