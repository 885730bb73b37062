"""Batches of images in their order: the data set of decoded samples and the loaders over it."""

import atexit
import itertools
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.util
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data._utils import signal_handling

from vitwarm.data.order import ImageOrder, rank_slice
from vitwarm.data.source import DamagedSample, ImageSource
from vitwarm.errors import UserError
from vitwarm.keys import keyed_rng
from vitwarm.parallel import shortage
from vitwarm.signals import ignore_stop_signals

_PATIENCE = 10  # seconds between two checks that the workers are alive
_STALLED = 600  # seconds without a batch after which they count as stuck
_DEATHS = 3
_log = logging.getLogger(__name__)

AT_ONCE = 16  # images that go through the phases of a transform together; they are in memory as a whole


class Transform(Protocol):
    """Decodes and transforms an image, in steps (state, rng) -> state from bytes to (3, H, W) uint8.

    Attributes:
        shape: (H, W).
    """

    shape: tuple[int, int]

    @property
    def phases(self) -> tuple[Callable[[Any, np.random.Generator], Any], ...]: ...


class ImageDataset(Dataset):
    """Decoded and transformed images, addressed by (epoch, sample): the same address always gives the same pixels.

    Args:
        shards: the images.
        transform: the transform of training or of evaluation.
        seed: root seed of the run; augmentation is keyed by (seed, epoch, sample).
    """

    def __init__(self, shards: ImageSource, transform: Transform, seed: int = 0):
        self.shards, self.transform, self.seed = shards, transform, seed

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, address: tuple[int, int]) -> dict[str, Any]:
        """One sample.

        Args:
            address: (epoch, sample).

        Returns:
            image (3, size, size) uint8, label int, valid bool, sample int, damage: None or (sample, key, reason).
            A damaged sample is black, not valid, and carries its reason.

        Raises:
            UserError: a tar is missing, or has changed since it was indexed.
        """
        return self._load([address])[0]

    def __getitems__(self, addresses: list[tuple[int, int]]) -> list[dict[str, Any]] | UserError:
        # torch puts the traceback of a worker's exception into the message, so a user's mistake is returned instead.
        try:
            parts = [addresses[start : start + AT_ONCE] for start in range(0, len(addresses), AT_ONCE)]
            return [sample for part in parts for sample in self._load(part)]
        except UserError as error:
            return error

    def _load(self, addresses: list[tuple[int, int]]) -> list[dict[str, Any]]:
        keys = [(int(epoch), int(sample)) for epoch, sample in addresses]
        rngs = [keyed_rng(self.seed, "images", "augment", epoch, sample) for epoch, sample in keys]
        states: list[Any] = [sample for _, sample in keys]
        reasons: list[str | None] = [None] * len(keys)
        for phase in (lambda sample, rng: self.shards.read(sample), *self.transform.phases):
            for row, rng in enumerate(rngs):
                if reasons[row] is None:
                    try:
                        states[row] = phase(states[row], rng)
                    except DamagedSample as error:
                        reasons[row] = str(error)
        black = torch.zeros(*self.transform.shape, 3, dtype=torch.uint8).permute(2, 0, 1)
        return [
            {
                "image": black if reason else pixels,
                "label": int(self.shards.labels[sample]),
                "valid": reason is None,
                "sample": sample,
                "damage": reason and (sample, self.shards.key(sample), reason),
            }
            for (_, sample), pixels, reason in zip(keys, states, reasons, strict=True)
        ]


def _collate(samples: list[dict[str, Any]] | UserError) -> dict[str, Any] | str:
    if isinstance(samples, UserError):
        return str(samples)
    damage = [damage for sample in samples if (damage := sample.pop("damage")) is not None]
    batch = {"damage": damage}
    if "image" in samples[0]:
        # Stacked in channels-last memory: the conversion to planes is slow on the CPU and free on the device.
        images = [sample.pop("image").permute(1, 2, 0) for sample in samples]
        batch["image"] = default_collate(images).permute(0, 3, 1, 2)
    return default_collate(samples) | batch


class _OrderedBatches:
    """Addresses of one process's micro-batches, step by step."""

    def __init__(self, order: ImageOrder, steps: range, share: slice, device_batch: int):
        self.order, self.steps, self.share, self.device_batch = order, steps, share, device_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            epochs, samples = self.order.batch(step)
            for start in range(self.share.start, self.share.stop, self.device_batch):
                rows = slice(start, start + self.device_batch)
                yield list(zip(epochs[rows].tolist(), samples[rows].tolist(), strict=True))


class _EvalBatches:
    """Addresses of the samples rank, rank + world, ...: every sample once over all processes, none twice."""

    def __init__(self, num_samples: int, rank: int, world: int, batch: int):
        self.samples, self.batch = range(rank, num_samples, world), batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in range(0, len(self.samples), self.batch):
            yield [(0, sample) for sample in self.samples[start : start + self.batch]]


class _After:
    """The batches of a sampler without the first ones."""

    def __init__(self, batches: Sequence[list[tuple[int, int]]] | _OrderedBatches | _EvalBatches, done: int):
        self.batches, self.done = batches, done

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return itertools.islice(self.batches, self.done, None)


class Loader:
    """Iterable of batches; see `train_loader`. Each iteration starts at the beginning, and its workers end with it.

    A worker that dies (most often for lack of memory) is replaced, with all others, and its batches are made again:
    nothing is lost, and the log says so. Three deaths without a batch between them end the iteration, as do workers
    from which nothing comes for ten minutes.
    """

    def __init__(
        self,
        dataset: Dataset,
        batches: Sequence[list[tuple[int, int]]] | _OrderedBatches | _EvalBatches | None,
        workers: int,
        pin_memory: bool | None,
    ):
        self.dataset, self.batches, self.workers = dataset, batches, workers
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory

    def _start(self, done: int) -> Iterator[dict[str, Any] | str]:
        """Workers on the batches after the first `done`."""
        loader = DataLoader(
            self.dataset,
            batch_size=1 if self.batches is not None else None,  # None: the data set makes its batches itself
            batch_sampler=_After(self.batches, done) if self.batches is not None else None,
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.pin_memory,
            worker_init_fn=_start_worker,
            timeout=_PATIENCE if self.workers else 0,
            generator=torch.Generator(),  # else each iteration would draw from the global one
        )
        multiprocessing.util.get_temp_dir()  # workers inherit it, and it goes with us; their own would stay
        try:
            running: Any = iter(loader)
        except (OSError, RuntimeError) as error:
            if short := shortage(error, "run.workers"):
                raise short from error
            raise
        if self.workers:
            # torch would answer the death of a worker with an exception in whatever the main thread is doing.
            signal_handling._remove_worker_pids(id(running))
            running._worker_pids_set = False
        return running

    def __iter__(self) -> Iterator[dict[str, Any]]:
        done = deaths = 0
        running = self._start(0)
        try:
            while True:
                try:
                    batch = _next(running)
                except StopIteration:
                    return
                except _WorkersFailed as failure:
                    deaths += 1
                    if deaths >= _DEATHS or failure.stuck or self.batches is None:
                        raise UserError(
                            f"{failure}; lower run.workers if memory is short, and run the same command again"
                        ) from None
                    _log.warning("%s: restarting the workers after batch %d", failure, done)
                    _kill(running)
                    running = self._start(done)
                    continue
                if isinstance(batch, str):
                    raise UserError(batch)
                done, deaths = done + 1, 0
                yield batch
        finally:
            _kill(running)


_DEATH = {
    -signal.SIGKILL: ", most often for lack of memory",
    -signal.SIGBUS: ": /dev/shm is full; enlarge it, in docker by --shm-size=8g",
}


class _WorkersFailed(Exception):
    def __init__(self, message: str, stuck: bool):
        super().__init__(message)
        self.stuck = stuck


def _next(running: Iterator[Any]) -> Any:
    """The next batch.

    Raises:
        _WorkersFailed: a worker is dead, or nothing has come for long.
    """
    workers, waited = getattr(running, "_workers", ()), 0.0
    while True:
        try:
            return next(running)
        except StopIteration:
            raise
        except Exception as error:
            slow = str(error).startswith("DataLoader timed out")
            # Data from a dying worker can be damaged before the worker is found dead.
            ends = multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=0 if slow else 1)
            if dead := [worker for worker in workers if worker.sentinel in ends]:
                dead[0].join()
                code = dead[0].exitcode
                why = _DEATH.get(code or 0, "")
                raise _WorkersFailed(f"a loader worker died (exit code {code}{why})", stuck=False) from None
            if not workers or not slow:
                if workers and (short := shortage(error, "run.workers")):
                    raise short from error
                raise
            waited += _PATIENCE
            if waited >= _STALLED:
                message = f"no batch for {waited:.0f} s: does a disk or a network folder hang?"
                raise _WorkersFailed(message, stuck=True) from None


def _kill(running: Any) -> None:
    """Kill the workers at once: they ignore SIGTERM, and one may wait for a lock that a dead one held."""
    # torch's own end of a loader would wait for the lock of this event, which one that is killed here may hold.
    running._workers_done_event = threading.Event()
    for worker in getattr(running, "_workers", ()):
        worker.kill()


@atexit.register
def _end_workers() -> None:
    # multiprocessing ends what still runs with SIGTERM, which workers ignore, and would then wait for them forever.
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _start_worker(worker: int) -> None:
    # Signals reach the whole process group. The main process answers them with a checkpoint, for which it needs its
    # workers alive; they end with it. (torch has set one thread a worker already.)
    ignore_stop_signals()


def train_loader(
    dataset: Dataset,
    order: ImageOrder,
    start_step: int,
    stop_step: int,
    rank: int = 0,
    world: int = 1,
    device_batch: int | None = None,
    workers: int = 0,
    pin_memory: bool | None = None,
) -> Loader:
    """Micro-batches of one process for the steps [start_step, stop_step), in order.

    The content of a batch depends neither on the number of workers nor on `start_step`.

    Args:
        dataset: addressed by (epoch, sample): an `ImageDataset` with a training transform, or `ResidentImages`.
        order: the global batches.
        rank, world: this process and how many there are; each takes a contiguous share of every global batch.
        device_batch: samples at once; None takes the whole share. Must divide the share.
        workers: loader processes; 0 loads in this one.
        pin_memory: None pins where CUDA is present.

    Returns:
        Batches: image (B, 3, size, size) uint8, label (B,) int64, valid (B,) bool, sample (B,) int64, and damage, a
        list of (sample, key, reason).

    Raises:
        UserError: the global batch does not divide; while iterating: a tar is gone or changed.
    """
    share = rank_slice(order.global_batch, rank, world)
    device_batch = device_batch or share.stop - share.start
    if (share.stop - share.start) % device_batch:
        raise UserError(f"run.device_batch={device_batch} does not divide a process's share {share.stop - share.start}")
    return Loader(
        dataset, _OrderedBatches(order, range(start_step, stop_step), share, device_batch), workers, pin_memory
    )


def eval_loader(
    dataset: ImageDataset,
    rank: int = 0,
    world: int = 1,
    batch: int = 256,
    workers: int = 0,
    pin_memory: bool | None = None,
    samples: int | None = None,
) -> Loader:
    """The first `samples` (None: all) once over all processes, without padding.

    The last batch may be smaller and a process may have none. Other args and batches are those of `train_loader`.
    """
    count = len(dataset) if samples is None else samples
    return Loader(dataset, _EvalBatches(count, rank, world, batch), workers, pin_memory)
