"""Which faults of the disk are the user's to mend, and that one process behaves like many."""

import errno

import pytest
import torch
from safetensors import SafetensorError

from vitwarm.errors import UserError
from vitwarm.training.processes import Processes, disk_trouble


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EFBIG, errno.ENOTDIR])
def test_a_disk_that_is_full_or_closed_is_said_in_one_line(code):
    said = disk_trouble(OSError(code, "the reason", "/data/x"))
    assert said.startswith("cannot write /data/x: the reason; ")
    assert "\n" not in said


def test_safetensors_hides_the_system_error_in_its_text():
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert disk_trouble(error).startswith("cannot write: No space left on device; ")


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOENT, "gone"), OSError("no number"), SafetensorError("Error while serializing: shape")]
)
def test_other_faults_are_ours(error):
    assert disk_trouble(error) is None


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
