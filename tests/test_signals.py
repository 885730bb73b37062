import os
import signal
import threading

import pytest

from vitwarm.signals import SIGNALS, stop_signals


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


def test_a_thread_can_run_too():
    result = []

    def work():
        with stop_signals() as seen:
            result.append(seen)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert result == [[]]
