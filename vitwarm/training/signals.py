"""Signals that ask a run to stop. Imports nothing heavy: they are caught from the first moment of a command."""

import contextlib
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """While inside, signals that ask to stop are noted in the list that is given; a second SIGINT stops at once.

    Outside the main thread, where Python takes no signals, the list stays empty.
    """
    seen: list[int] = []

    def note(number: int, _frame: object) -> None:
        if number == signal.SIGINT and signal.SIGINT in seen:
            raise KeyboardInterrupt
        seen.append(number)

    here = threading.current_thread() is threading.main_thread()
    before = {s: signal.signal(s, note) for s in SIGNALS} if here else {}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
