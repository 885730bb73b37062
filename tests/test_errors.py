"""Which faults of the disk are the user's to mend."""

import errno

import pytest
from safetensors import SafetensorError

from vitwarm.errors import disk_trouble


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
