"""The order in which cells are started, and when no more are."""

import json

from test_grid import grid

from vitwarm.budget import launch
from vitwarm.budget.cells import Folders
from vitwarm.budget.launch import Launch, carry_out


class Failed:
    """A job of submitit's that has ended at once."""

    job_id = "1"

    def done(self):
        return True

    def stderr(self):
        return "vitwarm: error: the loss is not finite"

    def stdout(self):
        return ""


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
