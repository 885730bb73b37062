"""Work spread over processes that end with their parent, however it ends."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from vitwarm.errors import UserError


def default_workers(world: int) -> int:
    """Default number of worker processes of a rank: its share of the CPUs, less one for the loop, at most 8."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(8, cpus // world - 1))


def run_in_pool(function: Callable[[Any], Any], jobs: Sequence[Any], workers: int) -> Iterator[tuple[int, Any]]:
    """Yield (number of the job, result) as results arrive; one worker runs the jobs in this process, in order.

    The first exception of a job is raised here, and what has not begun is dropped.

    Raises:
        UserError: a worker was killed.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from ((number, function(job)) for number, job in enumerate(jobs))
        return
    with _pool(workers) as pool:
        numbers = {pool.submit(function, job): number for number, job in enumerate(jobs)}
        try:
            for future in as_completed(numbers):
                yield numbers.pop(future), future.result()
        except BrokenProcessPool:
            raise _killed() from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def run_in_order(function: Callable[[Any], Any], jobs: Iterable[Any], workers: int) -> Iterator[Any]:
    """Yield results in the order of the jobs, few of them in memory at a time; one worker runs in this process.

    Raises:
        UserError: a worker was killed.
    """
    if workers <= 1:
        yield from map(function, jobs)
        return
    with _pool(workers) as pool:
        pending: deque[Future[Any]] = deque()
        try:
            for job in jobs:
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
    return ProcessPoolExecutor(workers, context, initializer=_end_with_parent, initargs=(os.getpid(),))


def _killed() -> UserError:
    return UserError(
        "a worker process was killed, perhaps for lack of memory; run the same command with fewer workers= to resume"
    )


def _end_with_parent(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the parent lets the shards in work be finished

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
