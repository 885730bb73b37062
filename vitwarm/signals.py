"""Signals that ask a run to stop. Imports nothing heavy: they are caught from the first moment of a command."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from vitwarm.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
# Set by torchrun, by accelerate launch and by `vitwarm ensemble`.
_LAUNCHED = ("TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND", "VITWARM_SEED_OF")
_PR_SET_PDEATHSIG = 1

_seen: list[int] = []
_listening = False


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """While inside, signals that ask to stop are noted in the list that is given; a second SIGINT stops at once.

    A signal that was ignored before stays so (`nohup`). Within another `stop_signals` the list is that one's. Outside
    the main thread, where Python takes no signals, the list stays empty.
    """
    if _listening or threading.current_thread() is not threading.main_thread():
        yield _seen if _listening else []
        return
    before = listen()
    try:
        yield _seen
    finally:
        _silence(before)


def listen() -> dict[int, Any]:
    """Begin to note signals, for a process that does so until it ends; returns the handlers that were there."""
    global _listening

    def note(number: int, _frame: object) -> None:
        if number == signal.SIGINT and signal.SIGINT in _seen:
            raise KeyboardInterrupt
        _seen.append(number)

    before: dict[int, Any] = {s: signal.getsignal(s) for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, note)
    _listening = True
    return before


def _silence(before: dict[int, Any]) -> None:
    global _listening
    for number, handler in before.items():
        signal.signal(number, handler)
    _listening = False
    _seen.clear()


def check_stop() -> None:
    """Stop where much work lies ahead.

    Raises:
        Interrupted: a signal came while `stop_signals` listens.
    """
    if _seen:
        raise Interrupted("stopped by a signal")


def ignore_stop_signals() -> None:
    """For a worker process: a signal to the whole group is for the one that it works for."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_with_launcher() -> None:
    """Have the system send SIGTERM when the launcher dies, which not every launcher passes on (Linux only)."""
    if sys.platform == "linux" and any(name in os.environ for name in _LAUNCHED):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
