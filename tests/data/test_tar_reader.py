"""One reader for all tars: what Python's tarfile reads, and a refusal where a byte is not accounted for."""

import bz2
import gzip
import io
import lzma
import tarfile

import numpy as np
import pytest
from tarmaking import samples, write_tar

from vitwarm.data.tar_reader import DamagedTar, read_tar


class Dribble(io.RawIOBase):
    """A stream that gives a few bytes at a time and cannot seek."""

    def __init__(self, data: bytes):
        self._data = data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = min(len(buffer), 700, len(self._data))
        buffer[:count], self._data = self._data[:count], self._data[count:]
        return count


WAYS = {
    "memory": io.BytesIO,
    "stream": lambda data: io.BufferedReader(Dribble(data)),
    "gzip": lambda data: io.BytesIO(gzip.compress(data)),
    "bzip2 stream": lambda data: io.BufferedReader(Dribble(bz2.compress(data))),
    "xz": lambda data: io.BytesIO(lzma.compress(data)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_what_tarfile_reads(tmp_path, way, format):
    names = ["short.png", "d" * 60 + "/k.cls", *([] if format == tarfile.USTAR_FORMAT else ["d" * 300 + "é.png"])]
    sizes = [0, 1, 511, 512, 513, 5000]
    rng = np.random.default_rng(0)
    members = [(f"{size}{name}", rng.bytes(size)) for name in names for size in sizes]
    data = write_tar(tmp_path / "t.tar", members, format).read_bytes()
    assert [(member.name, member.read()) for member in read_tar(WAYS[way](data))] == members
    skipped = [member.name for member in read_tar(WAYS[way](data))]
    assert skipped == [name for name, _ in members]
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        offsets = [info.offset_data for info in archive]
    assert [member.offset for member in read_tar(io.BytesIO(data))] == offsets


def outcome(file, reads: bool) -> list[str] | str:
    try:
        return [member.name for member in read_tar(file) if not reads or member.read() is not None]
    except DamagedTar as error:
        return str(error)


@pytest.mark.parametrize("way", WAYS)
def test_every_byte_is_accounted_for(tmp_path, way):
    """Cuts, flips of headers, rubbish behind the end: all that a tar held has come, or the tar is damaged."""
    data = write_tar(tmp_path / "t.tar", samples(4)).read_bytes()
    names = outcome(io.BytesIO(data), True)
    rng, damaged = np.random.default_rng(0), 0
    with tarfile.open(tmp_path / "t.tar") as archive:
        headers = [info.offset for info in archive]
    broken = [data[:cut] for cut in rng.integers(1, len(data), 40).tolist()]
    for header in headers:
        flipped = bytearray(data)
        flipped[header + rng.integers(160)] ^= 1 << rng.integers(8)  # name, owner, size, time, checksum, kind
        broken.append(bytes(flipped))
    broken += [data + b"x", data + data, data[: headers[3]] + bytes(1024) + data[headers[3] :]]
    for one in broken:
        for reads in (False, True):
            found = outcome(WAYS[way](one), reads)
            assert found == names or isinstance(found, str)
            damaged += isinstance(found, str)
    assert damaged > 2 * 20


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_tar_is_checked_to_its_end(tmp_path, compress):
    whole = compress(write_tar(tmp_path / "t.tar", samples(4)).read_bytes())
    for broken in (whole[:-1], whole[:-6], whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:], whole[: len(whole) // 2]):
        assert isinstance(outcome(io.BytesIO(broken), False), str)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"hello world" * 99, "invalid header|truncated|bad checksum"),
        (b"\x1f\x8b" + bytes(600), "."),
        (b"PK\x03\x04" + bytes(2000), "."),
    ],
)
def test_what_is_no_tar(data, message):
    with pytest.raises(DamagedTar, match=message):
        for member in read_tar(io.BytesIO(data)):
            member.read()


def test_a_header_of_gigabytes_is_not_read(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    with pytest.raises(DamagedTar, match="a header of 1099511"):
        list(read_tar(io.BytesIO(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))))


def test_links_are_told_and_sparse_members_refused(tmp_path):
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
        for name, kind in (("b", tarfile.LNKTYPE), ("c", tarfile.SYMTYPE), ("d", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a" if kind != tarfile.DIRTYPE else ""
            archive.addfile(info)
    assert [(member.name, member.link) for member in read_tar(io.BytesIO(path.read_bytes()))] == [
        ("a", None),
        ("b", "a"),
        ("c", "a"),
    ]
