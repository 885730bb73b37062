"""One process behaves like many."""

import errno

import pytest
import torch

from vitwarm.errors import UserError
from vitwarm.training.processes import Processes


@pytest.mark.parametrize("method", ["main_does", "all_do"])
def test_actions_pass_on_results_mistakes_and_faults(method):
    do = getattr(Processes(0, 1, torch.device("cpu")), method)

    def fail(error):
        raise error

    assert do(lambda: 7) == 7
    with pytest.raises(UserError, match="mine"):
        do(lambda: fail(UserError("mine")))
    with pytest.raises(UserError, match="No space"):
        do(lambda: fail(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(FileNotFoundError):
        do(lambda: fail(FileNotFoundError(errno.ENOENT, "gone")))
    with pytest.raises(ZeroDivisionError):
        do(lambda: 1 / 0)
