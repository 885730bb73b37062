"""Work spread over processes that end with their parent, however it ends."""

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

from tqdm import tqdm

from vitwarm.errors import UserError
from vitwarm.signals import SIGNALS, check_stop


def default_workers(world: int) -> int:
    """Default number of worker processes of a rank: its share of the CPUs, less one for the loop, at most 8.

    The CPUs are those of this machine, so the ranks that share them are `LOCAL_WORLD_SIZE`, which launchers set. Where
    Slurm started each rank as a task of its own, the share is what it gave a task: bound to it or not.
    """
    share = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if os.environ.get("SLURM_NTASKS") == str(world) and (own := os.environ.get("SLURM_CPUS_PER_TASK")):
        share = min(cores(), int(own))
    return max(0, min(8, share - 1))


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# What the system and torch say when processes cannot be started, or cannot pass their results on.
_SHORTAGE = re.compile(
    r"shared memory|shm_open|\(shm\)|torch_shm_manager|No space left on device|Too many open files|ancdata|Bus error"
    r"|Cannot allocate memory|Resource temporarily unavailable|Function not implemented"
)


def shortage(error: Exception, key: str) -> UserError | None:
    """What to tell the user where worker processes lack shared memory, open files or processes; None for other errors.

    Args:
        error: that was raised, here or in a worker.
        key: the option that says how many workers there are.
    """
    found = next((line for line in str(error).splitlines()[::-1] if _SHORTAGE.search(line)), None)
    if found is None or not isinstance(error, OSError | RuntimeError):
        return None
    return UserError(
        f"worker processes lack shared memory or open files ({found.strip()}); enlarge /dev/shm (docker run "
        f"--shm-size=8g), raise ulimit -n, or set {key}=0"
    )


def run_in_pool(function: Callable[[Any], Any], jobs: Sequence[Any], workers: int) -> Iterator[tuple[int, Any]]:
    """Yield (number of the job, result) as results arrive; one worker runs the jobs in this process, in order.

    The first exception of a job is raised here, and what has not begun is dropped.

    Raises:
        UserError: a worker was killed, or none can be started.
        Interrupted: a signal asks to stop.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        for number, job in enumerate(jobs):
            check_stop()
            yield number, function(job)
        return
    with _pool(workers) as pool:
        numbers = {_submit(pool, function, job): number for number, job in enumerate(jobs)}
        while numbers:
            done, _ = wait(numbers, timeout=0.5, return_when=FIRST_COMPLETED)
            check_stop()
            for future in done:
                yield numbers.pop(future), future.result()


def run_in_order(function: Callable[[Any], Any], jobs: Iterable[Any], workers: int) -> Iterator[Any]:
    """Yield results in the order of the jobs, few of them in memory at a time; one worker runs in this process.

    Raises:
        UserError: a worker was killed, or none can be started.
        Interrupted: a signal asks to stop.
    """
    if workers <= 1:
        for job in jobs:
            check_stop()
            yield function(job)
        return
    with _pool(workers) as pool:
        pending: deque[Future[Any]] = deque()
        for job in jobs:
            check_stop()
            pending.append(_submit(pool, function, job))
            if len(pending) > 4 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    # spawn: forking a process that has loaded torch, and so threads, is not safe.
    context = multiprocessing.get_context("spawn")
    worker_end, our_end = context.Pipe(duplex=False)
    with worker_end, our_end:
        initargs = (os.getpid(), worker_end)
        pool = ProcessPoolExecutor(workers, context, initializer=_end_with_parent, initargs=initargs)
        try:
            yield pool
        except BrokenProcessPool:
            our_end.close()  # the other workers take no signals of the pool
            raise UserError(
                "a worker process was killed, perhaps for lack of memory; run the same command with fewer workers= to "
                "resume"
            ) from None
        except OSError as error:  # of semaphores, which are files in /dev/shm, or of processes that do not start
            if short := shortage(error, "workers"):
                raise short from error
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, function: Callable[[Any], Any], job: Any) -> Future[Any]:
    """Hand in a job. A process that this starts has the signals blocked that may reach all processes of a run at once.

    This process decides what becomes of the work then.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return pool.submit(function, job)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _end_with_parent(parent: int, line: Connection) -> None:
    # A pool's worker waits forever for a parent that was killed.
    def watch() -> None:
        while os.getppid() == parent and not line.poll(0.5):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def progress_bar(total: int, name: str, unit: str, done: int = 0) -> Iterator[tqdm]:
    """Show a progress bar on a terminal, nothing elsewhere."""
    silent = not sys.stderr.isatty()
    with tqdm(total=total, initial=done, desc=name, unit=unit, unit_scale=True, disable=silent) as bar:
        yield bar
