"""Tars read from front to end with every byte accounted for, on a disk or from a stream.

Python's tarfile takes a damaged header, a cut between two members and a missing end for the end of an archive. Here
each of them is an error, as are bytes after the end mark and, of compressed tars, a wrong checksum or a cut.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, BinaryIO, cast

from vitwarm.data.compression import BROKEN, HEAD, decompressor

BLOCK = tarfile.BLOCKSIZE  # 512: a member is one header block, then its data padded to whole blocks

_MOST_HEADER = 1 << 24  # bytes of a long name or of extended attributes; real ones have less than a hundred thousand
# What tarfile and the decompressors raise on bytes that are not theirs.
_HOSTILE = (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError, *BROKEN)


class DamagedTar(Exception):
    """A tar is not whole; the message is the reason."""


@dataclass(frozen=True)
class Member:
    """A file in a tar.

    Attributes:
        name: as the tar has it.
        offset: first byte of its data in the uncompressed tar; 0 of a link.
        size: bytes of data; 0 of a link.
        link: name that a hard or symbolic link points to; None for data.
        header: the header block before the data.
    """

    name: str
    offset: int
    size: int
    link: str | None
    header: bytes = field(repr=False)
    _tar: "_Forward" = field(repr=False, compare=False)

    def read(self, most: int | None = None) -> bytes:
        """The data, or its first `most` bytes; before the next member is asked for.

        Raises:
            DamagedTar: the tar ends within it.
        """
        self._tar.seek(self.offset)
        wanted = self.size if most is None else min(self.size, most)
        data = self._tar.read_whole(wanted)
        if len(data) < wanted:
            raise DamagedTar(f"cut short within {self.name!r}")
        return data


def read_tar(file: IO[bytes]) -> Iterator[Member]:
    """The files and links in a tar, in its order.

    Args:
        file: at the first byte; compressed with gzip, bzip2 or xz or not. One that can seek skips data.

    Raises:
        DamagedTar: not every byte is accounted for. Members before the damage have come by then.
        OSError: the file cannot be read.
    """
    try:
        forward = _Forward(_decompressed(file))
        # Of its modes only this one leaves the end to be looked at; encoding: else the locale's.
        with tarfile.TarFile(fileobj=cast(BinaryIO, forward), mode="r", encoding="utf-8") as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header in memory
                if info.sparse is not None:
                    raise DamagedTar(f"{info.name!r} is a sparse member; write the tar without --sparse")
                if info.isreg():
                    yield Member(info.name, info.offset_data, info.size, None, forward.last, forward)
                elif info.islnk() or info.issym():
                    yield Member(info.name, 0, 0, info.linkname, forward.last, forward)
            _check_end(forward, archive.offset)
    except _HOSTILE as error:
        raise DamagedTar(str(error) or type(error).__name__) from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise DamagedTar(str(error)) from None  # of gzip and bz2


def _check_end(forward: "_Forward", offset: int) -> None:
    if not forward.last:
        raise DamagedTar(f"cut short: no end-of-archive mark at byte {offset}")
    if len(forward.last) < BLOCK:
        raise DamagedTar(f"cut short within a header at byte {offset}")
    if any(forward.last):
        raise DamagedTar(f"damaged header at byte {offset}")
    while rest := forward.read(1 << 20):
        if any(rest):
            raise DamagedTar("data after its end-of-archive mark: join tars with tar -A, not with cat")


def _decompressed(file: IO[bytes]) -> IO[bytes]:
    """The content of a compressed file, which its first bytes tell; of others, the file."""
    if isinstance(file, io.BufferedReader):
        head = file.peek(HEAD)[:HEAD]
    else:
        head = file.read(HEAD)
        file.seek(0)
    found = decompressor(head)
    return found(file) if found else file


class _Forward(io.RawIOBase):
    """A file that is read from front to end, in the way that tarfile reads: it seeks forward and reads headers.

    Attributes:
        last: the bytes of the last read.
    """

    def __init__(self, file: IO[bytes]):
        self._file, self._at, self.last = file, 0, b""
        # Decompressors can seek, by reading all from the start.
        self._skips = file.seekable() and isinstance(file, io.BufferedReader | io.BytesIO)
        self._start = file.tell() if self._skips else 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if self._skips:
            self._file.seek(self._start + offset)
            self._at = offset
        while self._at < offset:
            if not (skipped := self._file.read(min(offset - self._at, 1 << 20))):
                raise DamagedTar(f"cut short at byte {self._at}")
            self._at += len(skipped)
        if self._at > offset:
            raise tarfile.ReadError("members must be read in order")
        return offset

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MOST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self.last = self.read_whole(size)
        return self.last

    def read_whole(self, size: int) -> bytes:
        """That many bytes, or all that are left; a stream may give fewer at a time."""
        parts = []
        while size and (part := self._file.read(size)):
            parts.append(part)
            size -= len(part)
            self._at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)
