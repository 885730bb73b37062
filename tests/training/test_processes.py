"""One process behaves like many; one that does not come is waited for, but not forever."""

import errno
import socket
from datetime import timedelta

import pytest
import torch

from vitwarm.errors import Interrupted, UserError
from vitwarm.training import processes
from vitwarm.training.processes import Processes, start_accelerator
from vitwarm.training.sharding import check_launcher


@pytest.mark.parametrize("method", ["main_does", "all_do"])
def test_actions_pass_on_results_mistakes_and_faults(method):
    do = getattr(Processes(0, 1, torch.device("cpu")), method)

    def fail(error):
        raise error

    assert do(lambda: 7) == 7
    with pytest.raises(UserError, match="mine"):
        do(lambda: fail(UserError("mine")))
    with pytest.raises(Interrupted, match="a signal"):
        do(lambda: fail(Interrupted("a signal")))
    with pytest.raises(UserError, match="No space"):
        do(lambda: fail(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(FileNotFoundError):
        do(lambda: fail(FileNotFoundError(errno.ENOENT, "gone")))
    with pytest.raises(ZeroDivisionError):
        do(lambda: 1 / 0)


def test_a_signal_on_one_stops_all():
    one = Processes(0, 1, torch.device("cpu"))
    one.check_stop([])
    with pytest.raises(Interrupted, match="stopped by a signal"):
        one.check_stop([15])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_does_not_come(monkeypatch, rank):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joined = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in joined.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(processes, "_PATIENCE", timedelta(seconds=1))
    with pytest.raises(UserError, match=rf"not all 2 processes came to 127.0.0.1:{port} within 1 s"):
        start_accelerator()


@pytest.mark.parametrize(
    ("switch", "says"), [("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Megatron-LM"), ("FSDP", "FSDP1")]
)
def test_what_a_default_configuration_of_accelerate_may_ask_for(monkeypatch, switch, says):
    check_launcher()
    monkeypatch.setenv(f"ACCELERATE_USE_{switch}", "true")
    with pytest.raises(UserError, match=f"configuration of accelerate asks for {says}.*without a launcher"):
        check_launcher()
    if switch == "FSDP":
        monkeypatch.setenv("FSDP_VERSION", "2")
        check_launcher()
