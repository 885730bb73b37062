"""log.jsonl, TensorBoard and Weights & Biases get what the run says, once."""

import hashlib
import json
import shutil
import sys
import types

import pytest

from vitwarm.config import RunConfig, WandbConfig
from vitwarm.errors import UserError
from vitwarm.training.checkpoint import Checkpoints, State
from vitwarm.training.tracking import Tracker, check_trackers


def entry(step, **more):
    return {"event": "train", "stage": "toy", "step": step, "run_step": step, "loss": 1 / step, **more}


def read(folder):
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_log_is_on_disk_at_once_and_cut_where_the_run_goes_on(tmp_path):
    first = Tracker(tmp_path)
    for step in (1, 2):
        first.record(entry(step))
    length = first.bytes
    assert read(tmp_path) == [1, 2]
    first.record(entry(3))
    with open(tmp_path / "log.jsonl", "ab") as log:
        log.write(b'{"event": "tra')  # a kill in the middle of a line
    second = Tracker(tmp_path, log_bytes=length)
    second.record(entry(3))
    assert read(tmp_path) == [1, 2, 3]


def test_a_log_that_someone_removed_is_not_padded_with_zeros(tmp_path):
    Tracker(tmp_path, log_bytes=500).record(entry(1))
    assert read(tmp_path) == [1]


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_folder_that_is_gone_is_noticed_and_not_made_anew(tmp_path, how):
    folder = tmp_path / "run"
    folder.mkdir()
    tracker = Tracker(folder)
    tracker.record(entry(1))
    folder.rename(tmp_path / "elsewhere")
    if how == "removed":
        shutil.rmtree(tmp_path / "elsewhere")
    if how == "replaced":
        folder.mkdir()
        (folder / "log.jsonl").touch()
    for write in (lambda: tracker.record(entry(2)), lambda: tracker.bytes, tracker.writing().__enter__):
        with pytest.raises(UserError, match=r"run was removed or moved while the run wrote to it"):
            write()
    assert folder.exists() == (how == "replaced")
    if how == "moved":
        assert read(tmp_path / "elsewhere") == [1]


def test_a_folder_that_goes_while_a_checkpoint_is_written(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    tracker = Tracker(folder)
    with pytest.raises(UserError, match="was removed or moved"), tracker.writing():
        shutil.rmtree(folder)
        Checkpoints(folder / "checkpoints", 1).save(State("toy", 1, 1, "h"), {})
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "log.jsonl").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(OSError, match="symbolic links"):
        Tracker(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_what_is_shown_has_no_secrets_and_no_control_characters(tmp_path, capsys):
    tracker = Tracker(tmp_path)
    tracker.warn("damaged sample a\x1b[2J.jpg of https://me:pw@host/a.tar?X-Amz-Signature=ab12&part=3")
    assert capsys.readouterr().err.endswith(
        "sample a\\x1b[2J.jpg of https://...@host/a.tar?X-Amz-Signature=...&part=3\n"
    )


def test_only_the_main_process_writes(tmp_path):
    other = Tracker(tmp_path, active=False)
    other.record(entry(1), "shown")
    other.warn("nothing")
    assert other.bytes == 0
    assert list(tmp_path.iterdir()) == []
    other.close()


def test_terminal_lines_and_warnings_go_where_they_belong(tmp_path, capsys):
    tracker = Tracker(tmp_path)
    tracker.record(entry(1), "toy 1/9")
    tracker.warn("slow")
    out, err = capsys.readouterr()
    assert out == "toy 1/9\n"
    assert err == "vitwarm: warning: slow\n"


def test_tensorboard_has_each_step_once_also_after_going_on(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = Tracker(tmp_path, tensorboard=True)
    for step in (1, 2, 3):
        first.record(entry(step, note="text is not for curves"))
    second = Tracker(tmp_path, tensorboard=True, run_step=2)
    for step in (3, 4):
        second.record(entry(step))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["toy/loss"]
    assert [e.step for e in events.Scalars("toy/loss")] == [1, 2, 3, 4]
    assert events.Scalars("toy/loss")[1].value == pytest.approx(0.5)


def test_tensorboard_drops_what_a_run_without_a_checkpoint_left(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for last in (3, 2):
        tracker = Tracker(tmp_path, tensorboard=True)
        for step in range(1, last + 1):
            tracker.record(entry(step))
        tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("toy/loss")] == [1, 2]


class FakeWandb(types.ModuleType):
    def __init__(self, error=None):
        super().__init__("wandb")
        self.logged, self.started, self.error = [], [], error

    def init(self, **arguments):
        if self.error:
            raise self.error
        self.started.append(arguments)
        return self

    def log(self, numbers, step):
        self.logged.append((step, numbers))


def test_weights_and_biases_gets_numbers_and_finds_its_run_again(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    settings = WandbConfig("project", "team", "seeds", ["a", "b"])
    for log_every in (5, 7):  # what may change between starts
        config = {"recipe": "r", "hash": "h", "seed": 1, "run": {"log_every": log_every}}
        tracker = Tracker(tmp_path, wandb=settings, config=config)
        tracker.record(entry(1, lr=0.5, grad_norm=None))
        tracker.record({"event": "transfer", "copied": []})
    assert fake.logged == [(1, {"toy/loss": 1.0, "toy/lr": 0.5})] * 2
    first, second = fake.started
    assert first == {
        **{"project": "project", "entity": "team", "group": "seeds", "tags": ["a", "b"]},
        **{"dir": str(tmp_path), "name": tmp_path.name, "resume": "allow"},
        "id": hashlib.sha256(f"{tmp_path} {{'recipe': 'r', 'hash': 'h', 'seed': 1}}".encode()).hexdigest()[:16],
        "config": {"recipe": "r", "hash": "h", "seed": 1, "run": {"log_every": 5}},
    }
    assert second["id"] == first["id"] and second["config"] == config
    assert Tracker(tmp_path, wandb=WandbConfig()).active and len(fake.started) == 2


def test_weights_and_biases_that_refuse_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(RuntimeError("api_key not configured\nlong story")))
    with pytest.raises(UserError, match=r"does not start: api_key not configured; log in"):
        Tracker(tmp_path, wandb=WandbConfig("project"))


@pytest.mark.parametrize("key", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_with_the_command(monkeypatch, key):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    check_trackers(RunConfig())
    with pytest.raises(UserError, match=rf"pip install 'vitwarm\[{key}\]'"):
        check_trackers(RunConfig(**{key: WandbConfig("project") if key == "wandb" else True}))
