"""Real runs in real processes, without the seconds that importing torch takes each time.

A fork server imports the package once and forks a process for each command; it computes nothing itself. Such a process
has its own signals, exit code and descriptors, can be killed, and can join others over gloo.
"""

import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]

# A run of seconds with everything on: warm-up, moving average, drop path, mixing, erasing, accumulation.
TINY = {
    "base": "digits_proc",
    "model": {"args": {"embed_dim": 32, "depth": 2, "num_heads": 2, "drop_path_rate": 0.1}},
    "warmup": {
        "rule": {"k": 4},
        "budget": "10 steps",
        "global_batch": 16,
        "lr_warmup": "2 steps",
        "ema": 0.9,
        "eval_every": 6,
        "val_rows": 24,
    },
    "images": {"epochs": 0.2, "mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.25},  # 9 steps
    "train": {"global_batch": 32, "lr_warmup": "2 steps", "ema": 0.9, "clip_grad": 1.0},
    "run": {"log_every": 1, "checkpoint_every": 4, "keep_last": 2, "workers": 0, "device_batch": 8},
}
WARMUP_STEPS, IMAGE_STEPS = 10, 9

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["vitwarm.run", "vitwarm.cli", __name__])


def merged(tree: dict, over: dict) -> dict:
    out = dict(tree)
    for name, value in over.items():
        out[name] = merged(out[name], value) if isinstance(value, dict) and isinstance(out.get(name), dict) else value
    return out


def write_recipe(folder: Path, **changes) -> Path:
    """The tiny recipe with changes, as a file."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(merged(TINY, changes)))
    return path


def _enter(
    command: str, arguments: list[str], environment: dict[str, str], said: Path, die: str | None, before: str | None
) -> None:
    os.environ.update({"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | environment)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(said.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    multiprocessing.set_start_method("fork", force=True)  # of loader workers; a fork server's child would inherit that
    import torch

    torch.set_num_threads(1)
    if die:
        _die_when_flushing(die)
    if before:
        exec(before, {})
    sys.argv = [f"{command}.py", *arguments]
    from vitwarm import cli

    cli.tool(command)


def _die_when_flushing(pattern: str) -> None:
    """Kill -9, from within, at the moment when a file whose path holds `pattern` is flushed to the disk."""
    fsync = os.fsync

    def deadly(descriptor: int) -> None:
        if pattern in os.readlink(f"/proc/self/fd/{descriptor}"):
            os.kill(os.getpid(), 9)
        fsync(descriptor)

    os.fsync = deadly


class Command:
    """`vitwarm NAME ARGUMENTS` as `world` processes.

    Args:
        arguments: of the command.
        scratch: folder for what it prints.
        world: processes; they find each other as under srun, by their environment.
        die: see `_die_when_flushing`.
        before: Python source that each process runs first, to break something around it.
        environment: further variables.
        name: of the subcommand.
    """

    count = 0

    def __init__(
        self,
        arguments: list[str],
        scratch: Path,
        world: int = 1,
        die: str | None = None,
        before: str | None = None,
        environment: dict[str, str] | None = None,
        name: str = "train",
    ):
        Command.count += 1
        self.said = [scratch / f"said-{Command.count}-{rank}" for rank in range(world)]
        self.processes = []
        port = str(free_port())
        for rank, said in enumerate(self.said):
            joined = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            joined = {k: str(v) for k, v in joined.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            shared = (joined if world > 1 else {}) | (environment or {})
            what = (name, list(map(str, arguments)), shared, said, die, before)
            process = _context.Process(target=_enter, args=what)
            process.start()
            self.processes.append(process)

    @property
    def pid(self) -> int:
        return self.processes[0].pid

    def wait(self, seconds: float = 120) -> int:
        """Exit code of the first process; negative when a signal killed it. All of them must have ended."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        running = [p for p in self.processes if p.is_alive()]
        for process in running:
            process.kill()
        assert not running, f"still running after {seconds} s: {self.err}"
        return self.processes[0].exitcode

    def wait_for(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        """Until the condition holds, while the command runs."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.processes[0].is_alive(), f"ended before its time: {self.out}{self.err}"
            assert time.monotonic() < end, f"nothing after {seconds} s: {self.out}{self.err}"
            time.sleep(0.002)

    @property
    def out(self) -> str:
        return "".join(s.with_suffix(".out").read_text() for s in self.said if s.with_suffix(".out").exists())

    @property
    def err(self) -> str:
        return "".join(s.with_suffix(".err").read_text() for s in self.said if s.with_suffix(".err").exists())


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def log(folder: Path, event: str = "train", stage: str | None = None) -> list[dict]:
    """Entries of a run's log; a line that is being written is left out."""
    file = folder / "log.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith("\n")]
    return [e for e in entries if e["event"] == event and stage in (None, e.get("stage"))]


def weights(folder: Path) -> bytes:
    return (folder / "export" / "model.safetensors").read_bytes()


def assert_complete(folder: Path) -> None:
    """Finished, every step logged once and in order, nothing half-written left."""
    assert (folder / "result.json").is_file()
    assert [e["step"] for e in log(folder, stage="warmup")] == list(range(1, WARMUP_STEPS + 1))
    assert [e["step"] for e in log(folder, stage="images")] == list(range(1, IMAGE_STEPS + 1))
    assert [e["run_step"] for e in log(folder)] == list(range(1, WARMUP_STEPS + IMAGE_STEPS + 1))
    assert len(log(folder, "transfer")) == 1
    hidden = [p for p in folder.rglob(".*") if p.name != ".lock"]
    assert hidden == []
