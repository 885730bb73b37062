"""Small agreements between the processes of a run, on the CPU, so that they never synchronise a GPU."""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors import SafetensorError

from vitwarm.errors import UserError, disk_trouble

DISK_ERRORS = (OSError, SafetensorError)


def start_accelerator() -> Accelerator:
    """Join the processes that the launcher started: NCCL on GPUs, gloo on CPUs.

    The recipe alone decides the precision, so autocast is ours and accelerate's stays off.
    """
    # Started by torchrun where there is no GPU, accelerate would take each process for a run of its own.
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if not alone:
        _join_restarted()
    return Accelerator(
        cpu=not alone and not torch.cuda.is_available(),
        mixed_precision="no",
    )


def _join_restarted() -> None:
    """Meet under names of our own when torchrun has started the processes anew (`--max-restarts`).

    It keeps one store for all its attempts, where processes would find the addresses of those that died, and wait for
    them forever.
    """
    attempt, shared = (os.environ.get(f"TORCHELASTIC_{name}") for name in ("RESTART_COUNT", "USE_AGENT_STORE"))
    if attempt in (None, "0") or shared != "True" or dist.is_initialized():
        return
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, is_master=False)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=dist.PrefixStore(f"attempt {attempt}", store), rank=rank, world_size=world)


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

    def main_does(self, action: Callable[[], Any]) -> Any:
        """Run `action` on the main process; its result, or its UserError, reaches every process.

        Without this, an error on one rank would leave the others waiting in their next collective. A disk that is
        full or closed to us is a UserError.
        """
        message: list[Any] = [None, None]
        if self.is_main:
            message = list(_tried(action))
        if self.world > 1:
            dist.broadcast_object_list(message, src=0, group=self._group)
        if message[1] is not None:
            raise UserError(message[1])
        return message[0]

    def all_do(self, action: Callable[[], Any]) -> Any:
        """Run `action` on every process; a UserError on any of them is raised on all. Returns this rank's result."""
        result, trouble = _tried(action)
        for message in self.gather(trouble):
            if message is not None:
                raise UserError(message)
        return result


def _tried(action: Callable[[], Any]) -> tuple[Any, str | None]:
    """The result, and what the user has to fix; a fault of ours passes through."""
    try:
        return action(), None
    except UserError as error:
        return None, str(error)
    except DISK_ERRORS as error:
        trouble = disk_trouble(error)
        if trouble is None:
            raise
        return None, trouble
