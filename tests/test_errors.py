"""Which faults of the disk are the user's to mend."""

import errno

import pytest
from safetensors import SafetensorError

from vitwarm.errors import disk_trouble, shown, without_secrets


@pytest.mark.parametrize(
    ("codes", "advice"),
    [
        ((errno.ENOSPC, errno.EFBIG), "free space"),
        ((errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST), "fix the path or its permissions"),
        ((errno.EIO, errno.ESTALE), "see to the disk"),
    ],
)
def test_a_disk_that_is_full_or_closed_is_said_in_one_line(codes, advice):
    for code in codes:
        said = disk_trouble(OSError(code, "the reason", "/data/x"))
        assert said == f"cannot write /data/x: the reason; {advice}, then run the same command again"


def test_safetensors_hides_the_system_error_in_its_text():
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert disk_trouble(error).startswith("cannot write: No space left on device; ")


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOENT, "gone"), OSError("no number"), SafetensorError("Error while serializing: shape")]
)
def test_other_faults_are_ours(error):
    assert disk_trouble(error) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("https://h/a.tar?X-Amz-Signature=ab&part=2", "https://h/a.tar?X-Amz-Signature=...&part=2"),
        ("https://h/{000..009}.tar?sv=1&sig=a%2Fb&sp=r: gone", "https://h/{000..009}.tar?sv=1&sig=...&sp=r: gone"),
        ("s3://me:pw@host/a.tar", "s3://...@host/a.tar"),
        ("ftp://me@host/a.tar 'x'", "ftp://...@host/a.tar 'x'"),
        ("'https://h/a?Expires=17&Key-Pair-Id=K' and more", "'https://h/a?Expires=...&Key-Pair-Id=...' and more"),
        ("https://h/a?access_token=x", "https://h/a?access_token=..."),
        ("https://h/a?id=17&size=3", "https://h/a?id=17&size=3"),
        ("/data/a@b/train-{000..009}.tar", "/data/a@b/train-{000..009}.tar"),
        ("tokenizer=gpt2/ lr=1e-3", "tokenizer=gpt2/ lr=1e-3"),
    ],
)
def test_secrets_of_addresses_are_left_out(text, says):
    assert without_secrets(text) == shown(text) == says
    assert without_secrets(says) == says


def test_control_characters_are_written_out():
    assert shown("a\x1b[31m\r\x00b\u2028\udce9\n é") == "a\\x1b[31m\\r\\x00b\\u2028\\udce9\n é"
