"""Compressed files, known by their first bytes and read from front to end."""

import bz2
import gzip
import io
import lzma
import zlib
from typing import IO, cast

from vitwarm.errors import UserError

_ZSTD = b"\x28\xb5\x2f\xfd"
BROKEN = (EOFError, zlib.error, lzma.LZMAError)  # what decompressors raise beside OSError on bytes that are not theirs


def decompressed(file: IO[bytes], where: object) -> io.BufferedReader:
    """The content of a file, compressed with gzip, bzip2, xz or Zstandard or not.

    Args:
        file: at its first byte; it can seek.
        where: its name, for messages.

    Raises:
        UserError: nothing here reads Zstandard.
    """
    head = file.read(10)
    file.seek(0)
    if head.startswith(b"\x1f\x8b"):
        file = gzip.GzipFile(fileobj=file)  # type: ignore[assignment]  # reads as IO does, but is not declared as one
    elif head.startswith(b"BZh") and head[4:] == b"1AY&SY":
        file = bz2.BZ2File(file)
    elif head.startswith(b"\xfd7zXZ\0"):
        file = lzma.LZMAFile(file)  # noqa: SIM115  # the reader that is returned closes it
    elif head.startswith(_ZSTD):
        try:
            import pyarrow
        except ImportError:
            message = f"{where}: is compressed with Zstandard, which needs pyarrow: pip install vitwarm[parquet]"
            raise UserError(message) from None
        file = cast(IO[bytes], pyarrow.CompressedInputStream(file, "zstd"))
    return io.BufferedReader(cast(io.RawIOBase, file), 1 << 20)
