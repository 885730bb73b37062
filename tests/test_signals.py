import os
import signal
import threading

import pytest

from vitwarm.errors import Interrupted
from vitwarm.parallel import default_workers, run_in_order, run_in_pool
from vitwarm.signals import SIGNALS, check_stop, stop_signals


def test_signals_are_noted_and_the_handlers_put_back():
    before = [signal.getsignal(s) for s in SIGNALS]
    with stop_signals() as seen:
        for number in SIGNALS:
            os.kill(os.getpid(), number)
        assert seen == list(SIGNALS)
    assert [signal.getsignal(s) for s in SIGNALS] == before


def test_a_second_interrupt_stops_at_once():
    with stop_signals() as seen:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert seen == [signal.SIGINT]


@pytest.mark.parametrize(
    ("cpus", "world", "environment", "workers"),
    [
        (12, 16, {"LOCAL_WORLD_SIZE": "8", "SLURM_NTASKS": "16", "SLURM_CPUS_PER_TASK": "12"}, 8),  # bound to its task
        (96, 16, {"LOCAL_WORLD_SIZE": "8", "SLURM_NTASKS": "16", "SLURM_CPUS_PER_TASK": "6"}, 5),  # not bound
        (64, 32, {"LOCAL_WORLD_SIZE": "8"}, 7),  # torchrun on four nodes
        (
            64,
            16,
            {"LOCAL_WORLD_SIZE": "8", "SLURM_NTASKS": "2", "SLURM_CPUS_PER_TASK": "64"},
            7,
        ),  # torchrun in a task a node
        (2, 2, {}, 0),
        (8, 1, {}, 7),
    ],
)
def test_loader_workers_share_the_cpus_of_their_machine(monkeypatch, cpus, world, environment, workers):
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("vitwarm.parallel.cores", lambda: cpus)
    assert default_workers(world) == workers


def test_a_thread_can_run_too():
    result = []

    def work():
        with stop_signals() as seen:
            result.append(seen)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert result == [[]]


def test_an_ignored_signal_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as seen:
            os.kill(os.getpid(), signal.SIGHUP)
            assert seen == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_within_another_the_list_is_that_ones():
    with stop_signals() as seen:
        os.kill(os.getpid(), signal.SIGTERM)
        with stop_signals() as inner:
            assert inner is seen
        assert seen == [signal.SIGTERM]
    with stop_signals() as seen:
        assert seen == []


@pytest.mark.parametrize("run", [run_in_pool, run_in_order])
def test_work_stops_between_two_jobs(run):
    done = []

    def work(job):
        done.append(job)
        if job == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with stop_signals():
        with pytest.raises(Interrupted, match="stopped by a signal"):
            list(run(work, range(9), 1))
        with pytest.raises(Interrupted):
            check_stop()
    assert done == [0, 1, 2]
    check_stop()
