"""The order in which cells are started, and when no more are."""

import json

from test_grid import grid

from vitwarm.budget import launch
from vitwarm.budget.cells import Folders
from vitwarm.budget.launch import Launch, _last_words, carry_out


class Failed:
    """A job of submitit's that has ended at once."""

    job_id = "1"

    def __init__(self, stderr="vitwarm: error: the loss is not finite", stdout=""):
        self.stderr, self.stdout = (lambda: stderr), (lambda: stdout)

    def done(self):
        return True


def test_what_crashed_is_tried_again_last_so_that_an_arm_that_fails_does_not_keep_the_others_waiting(
    tmp_path, monkeypatch, capsys
):
    found, folders = grid(tmp_path, seeds=[0, 1, 2]), Folders(tmp_path / "cells", tmp_path)
    started = []

    class Executor:
        def submit(self, words):
            started[-1].append(words)
            return Failed()

    monkeypatch.setattr(launch, "_executor", lambda *_: Executor())
    monkeypatch.setattr(launch, "_command", lambda words: words[-1])  # run.dir=FOLDER
    monkeypatch.setattr(launch, "POLL", 0)

    def start():
        started.append([])
        carry_out(found, folders, Launch(accelerate=None), tmp_path, [])
        return [word.removeprefix("run.dir=") for word in started[-1]]

    ready = [str(cell.folder) for cell in found.cells if cell.ready()]
    assert len(ready) > 6
    assert start() == ready[:3]
    assert "3 cells in a row crashed: no more are started" in capsys.readouterr().out
    failures = json.loads(folders.failures_file.read_text())
    assert [*failures.values()] == ["the loss is not finite"] * 3
    assert start() == ready[3:6]
    folders.failures_file.write_text(
        json.dumps({cell.hash: "" for cell in found.cells if str(cell.folder) in ready[:6]})
    )
    assert start() == ready[6:9]


def test_the_reason_of_a_failure_is_what_vitwarm_said_last_or_the_signal_or_the_error():
    killed = "CalledProcessError: Command '['env', 'python']' died with <Signals.SIGKILL: 9>."
    assert _last_words(Failed(killed, "start\n")) == "it was killed (SIGKILL)"
    assert _last_words(Failed(f"vitwarm: error: no space left\n{killed}")) == "no space left"
    assert _last_words(Failed("Traceback\nValueError: x\nsubmitit.FailedJobError: y")) == "ValueError: x"
    assert _last_words(Failed("")) == "no output; see job 1"
