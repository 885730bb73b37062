"""Small agreements between the processes of a run, on the CPU, so that they never synchronise a GPU."""

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors import SafetensorError
from torch.distributed.constants import default_pg_timeout

from vitwarm.errors import Interrupted, UserError, disk_trouble
from vitwarm.signals import check_stop

_PATIENCE = timedelta(seconds=50)
DISK_ERRORS = (OSError, SafetensorError)


def start_accelerator() -> Accelerator:
    """Join the processes that the launcher started: NCCL on GPUs, gloo on CPUs.

    The recipe alone decides precision and compilation, so accelerate's stay off.

    Raises:
        UserError: some of the processes do not come.
    """
    # Started by torchrun where there is no GPU, accelerate would take each process for a run of its own.
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if not alone and not dist.is_initialized():
        _join()
    return Accelerator(
        cpu=not alone and not torch.cuda.is_available(),
        mixed_precision="no",
        dynamo_backend="no",
    )


def trains_on_gpu() -> bool:
    """Whether a run would train on a GPU here."""
    return torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() not in ("1", "true")


def _join() -> None:
    """Meet the other processes of the run; one that was killed, or refused its recipe, does not come.

    Under torchrun's `--max-restarts` one store serves all attempts, so each has names of its own: else processes would
    find the addresses of those that died, and wait for them forever.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store: dist.Store = dist.TCPStore(
            host, port, world, rank == 0 and not agents, timeout=_PATIENCE, wait_for_workers=False, multi_tenant=True
        )
        store = dist.PrefixStore(f"attempt {attempt}", store)
        names = [f"process {number}" for number in range(world)]
        store.set(names[rank], "here")
        store.wait(names, _PATIENCE)
    except dist.DistError as error:
        check_stop()
        raise UserError(
            f"not all {world} processes came to {host}:{port} within {_PATIENCE.seconds} s; see what the others say, "
            "then start them together"
        ) from error
    store.set_timeout(default_pg_timeout)
    dist.init_process_group("nccl" if trains_on_gpu() else "gloo", store=store, rank=rank, world_size=world)


class Processes:
    """Rank, world size, and exact sums and messages between ranks.

    GPU runs talk through a gloo group of their own: NCCL would have to move every number over the device.

    Args:
        rank: index of this process.
        world: number of processes.
        device: what this process computes on.
    """

    def __init__(self, rank: int, world: int, device: torch.device):
        self.rank, self.world, self.device = rank, world, device
        self.is_main = rank == 0
        self._group: dist.ProcessGroup | None = None
        if world > 1:
            group = dist.new_group(backend="gloo")
            assert not isinstance(group, int)  # what a process that is no member would get
            self._group = group

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over all processes, in double precision."""
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        summed: list[float] = total.tolist()
        return summed

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, in rank order, on every rank."""
        if self.world == 1:
            return [value]
        out = [None] * self.world
        dist.all_gather_object(out, value, group=self._group)
        return out

    def check_stop(self, stop: list[int]) -> None:
        """Stop on every process when a signal came on any.

        Raises:
            Interrupted: it did.
        """
        if any(self.gather(bool(stop))):
            raise Interrupted("stopped by a signal")

    def main_does(self, action: Callable[[], Any]) -> Any:
        """Run `action` on the main process; its result, its UserError or that it was interrupted reaches every process.

        Without this, an error on one rank would leave the others waiting in their next collective. A disk that is
        full or closed to us is a UserError.
        """
        message: list[Any] = [None, None]
        if self.is_main:
            message = list(_tried(action))
        if self.world > 1:
            dist.broadcast_object_list(message, src=0, group=self._group)
        if message[1] is not None:
            raise message[1]
        return message[0]

    def all_do(self, action: Callable[[], Any]) -> Any:
        """Run `action` on every process; what stops any of them is raised on all. Returns this rank's result."""
        result, trouble = _tried(action)
        for error in self.gather(trouble):
            if error is not None:
                raise error
        return result


def _tried(action: Callable[[], Any]) -> tuple[Any, UserError | Interrupted | None]:
    """The result, and what stops the run; a fault of ours passes through."""
    try:
        return action(), None
    except (UserError, Interrupted) as error:
        return None, type(error)(str(error))  # without its traceback, to travel
    except DISK_ERRORS as error:
        trouble = disk_trouble(error)
        if trouble is None:
            raise
        return None, UserError(trouble)


@contextlib.contextmanager
def plain_torch(device: torch.device) -> Iterator[None]:
    """What a caller may have set in torch, as a process of its own has it: a recipe alone says how it computes.

    Args:
        device: whose autocast and random state are kept apart, beside those of the CPU.
    """
    before = torch.get_default_dtype()
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
