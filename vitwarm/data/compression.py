"""Compressed files, known by their first bytes and read from front to end."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import IO, Any, cast

from vitwarm.errors import UserError

_ZSTD = b"\x28\xb5\x2f\xfd"
BROKEN = (EOFError, zlib.error, lzma.LZMAError)  # what decompressors raise beside OSError on bytes that are not theirs
HEAD = 10  # bytes that tell


def decompressor(head: bytes) -> Callable[[IO[bytes]], IO[bytes]] | None:
    """What reads a file with such first bytes, compressed with gzip, bzip2 or xz; None where it is none of these."""
    found: Any = None
    if head.startswith(b"\x1f\x8b"):
        found = gzip.open
    elif head.startswith(b"BZh") and head[4:] == b"1AY&SY":
        found = bz2.open
    elif head.startswith(b"\xfd7zXZ\0"):
        found = lzma.open
    return found


def decompressed(file: IO[bytes], where: object) -> io.BufferedReader:
    """The content of a file, compressed with gzip, bzip2, xz or Zstandard or not.

    Args:
        file: at its first byte; it can seek.
        where: its name, for messages.

    Raises:
        UserError: nothing here reads Zstandard.
    """
    head = file.read(HEAD)
    file.seek(0)
    if found := decompressor(head):
        file = found(file)
    elif head.startswith(_ZSTD):
        try:
            import pyarrow
        except ImportError:
            message = f"{where}: is compressed with Zstandard, which needs pyarrow: pip install vitwarm[parquet]"
            raise UserError(message) from None
        file = cast(IO[bytes], pyarrow.CompressedInputStream(file, "zstd"))
    return io.BufferedReader(cast(io.RawIOBase, file), 1 << 20)
