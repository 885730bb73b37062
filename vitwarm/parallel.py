"""Work spread over processes that end with their parent, however it ends."""

import contextlib
import multiprocessing
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from vitwarm.errors import UserError
from vitwarm.signals import check_stop, ignore_stop_signals


def default_workers(world: int) -> int:
    """Default number of worker processes of a rank: its share of the CPUs, less one for the loop, at most 8."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(8, cpus // world - 1))


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
        UserError: a worker was killed.
        Interrupted: a signal asks to stop.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        for number, job in enumerate(jobs):
            check_stop()
            yield number, function(job)
        return
    with _pool(workers) as pool:
        numbers = {pool.submit(function, job): number for number, job in enumerate(jobs)}
        try:
            while numbers:
                done, _ = wait(numbers, timeout=0.5, return_when=FIRST_COMPLETED)
                check_stop()
                for future in done:
                    yield numbers.pop(future), future.result()
        except BrokenProcessPool:
            raise _killed() from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def run_in_order(function: Callable[[Any], Any], jobs: Iterable[Any], workers: int) -> Iterator[Any]:
    """Yield results in the order of the jobs, few of them in memory at a time; one worker runs in this process.

    Raises:
        UserError: a worker was killed.
        Interrupted: a signal asks to stop.
    """
    if workers <= 1:
        for job in jobs:
            check_stop()
            yield function(job)
        return
    with _pool(workers) as pool:
        pending: deque[Future[Any]] = deque()
        try:
            for job in jobs:
                check_stop()
                pending.append(pool.submit(function, job))
                if len(pending) > 4 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            raise _killed() from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    # spawn: forking a process that has loaded torch, and so threads, is not safe.
    context = multiprocessing.get_context("spawn")
    try:
        return ProcessPoolExecutor(workers, context, initializer=_end_with_parent, initargs=(os.getpid(),))
    except OSError as error:  # of its semaphores, which are files in /dev/shm
        if short := shortage(error, "workers"):
            raise short from error
        raise


def _killed() -> UserError:
    return UserError(
        "a worker process was killed, perhaps for lack of memory; run the same command with fewer workers= to resume"
    )


def _end_with_parent(parent: int) -> None:
    ignore_stop_signals()  # they reach all: the parent lets the shards in work be finished

    # A pool's worker waits forever for a parent that was killed.
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def progress_bar(total: int, name: str, unit: str, done: int = 0) -> Iterator[tqdm]:
    """Show a progress bar on a terminal, nothing elsewhere."""
    silent = not sys.stderr.isatty()
    with tqdm(total=total, initial=done, desc=name, unit=unit, unit_scale=True, disable=silent) as bar:
        yield bar
