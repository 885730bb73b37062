"""Weights & Biases, with a stand-in for its package: a run starts only where it can log."""

import sys
from types import SimpleNamespace

import pytest

from vitwarm.config import WandbConfig
from vitwarm.errors import UserError
from vitwarm.recipe import load_recipe
from vitwarm.run import run
from vitwarm.training.logins import check_wandb_login


@pytest.fixture
def wandb(monkeypatch):
    """The package; its `answer` is what a login returns, or raises."""
    fake = SimpleNamespace(answer=True, asked=[], settings=SimpleNamespace(mode="online"), __spec__=SimpleNamespace())

    def login(*, verify):
        fake.asked.append(verify)
        if isinstance(fake.answer, Exception):
            raise fake.answer
        return fake.answer

    fake.setup, fake.login = lambda: SimpleNamespace(settings=fake.settings), login
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_who_is_logged_in_may_track(wandb):
    check_wandb_login(WandbConfig(project="project"))
    assert wandb.asked == [True]
    check_wandb_login(WandbConfig())
    wandb.settings.mode = "offline"
    check_wandb_login(WandbConfig(project="project"))
    assert wandb.asked == [True]  # neither without tracking nor without a server


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(False, "nobody is logged in"), (RuntimeError("No API key configured.\nmore"), "No API key configured."),
     (ConnectionError(), "ConnectionError")],
)  # fmt: skip
def test_else_the_run_ends_before_it_writes_anything(wandb, tmp_path, answer, reason):
    wandb.answer = answer
    with pytest.raises(UserError, match=f"run.wandb=project needs a login to Weights & Biases: {reason}; do") as caught:
        run(load_recipe(["recipe=digits_proc", "run.wandb=project", f"run.dir={tmp_path / 'run'}"]))
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []
