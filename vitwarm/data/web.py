"""Files on web servers, on the Hugging Face Hub and in object stores, opened for reading from front to end."""

import http.client
import io
import re
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO

from vitwarm.errors import UserError
from vitwarm.signals import check_stop

_TIMEOUT, _TRIES, _PAUSE = 60, 6, 0.5  # seconds without a byte; connections in a row; seconds before the second one
# How the Hub says that it gives nothing to this caller; what does not exist looks the same as what is private.
_CLOSED = {
    "GatedRepoError": "is gated; accept its terms on its page, then log in (hf auth login) or set HF_TOKEN",
    "RepositoryNotFoundError": "no such repository, or a private one; log in (hf auth login) or set HF_TOKEN",
}


def is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def open_url(url: str) -> BinaryIO:
    """Open a URL for reading from front to end.

    `http` and `https` are read here, and a broken connection is reopened; other schemes are read by the file system
    that fsspec has for them. No command is ever run: there is nothing like webdataset's `pipe:`.

    Raises:
        OSError: it cannot be read.
        UserError: the scheme is unknown, or its package is not installed.
    """
    if is_web(url):
        return io.BufferedReader(_WebFile(url), 1 << 20)
    system, path = file_system(url)
    # One request for a whole file of the Hub; it would take one for every 5 MB, and it limits their number.
    try:
        file = system.open(path, "rb", **({"block_size": 0} if url.startswith("hf://") else {}))
    except Exception as error:  # file systems raise many kinds
        raise OSError(one_line(error)) from None
    return io.BufferedReader(_ForwardFile(file), 1 << 20)


def fetch(url: str, place: Path) -> None:
    """Copy a file from elsewhere to a place on the disk.

    Raises:
        FileNotFoundError: there is none.
        UserError: as `open_url`.
        Interrupted: a signal asks to stop.
        Exception: whatever a file system raises.
    """
    if is_web(url):
        with open_url(url) as file, open(place, "wb") as local:
            while piece := file.read(1 << 20):
                check_stop()
                local.write(piece)
        return
    from fsspec.callbacks import TqdmCallback

    system, path = file_system(url)
    silent = not sys.stderr.isatty()
    shown_as = {"desc": file_name(url), "unit": "B", "unit_scale": True, "leave": False, "disable": silent}
    system.get_file(path, str(place), callback=TqdmCallback(tqdm_kwargs=shown_as))


def file_system(url: str) -> tuple[Any, str]:
    """The file system of fsspec for a URL, and the path in it.

    Raises:
        UserError: the scheme is unknown, or its package is not installed.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # an unknown scheme, or one whose package is not installed
        raise UserError(f"{shown(url)}: {one_line(error)}") from None


class _ForwardFile(io.RawIOBase):
    """A file of fsspec, which says that it can seek also where it cannot."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            data = self._file.read(len(buffer))
        except Exception as error:  # likewise
            raise OSError(one_line(error)) from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class _WebFile(io.RawIOBase):
    """A file on a web server, read from front to end; where a connection breaks, the next one resumes it."""

    def __init__(self, url: str):
        self._url, self._at = url, 0
        self._size: int | None = None
        self._response: http.client.HTTPResponse | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        for attempt in range(_TRIES):
            try:
                if self._response is None:
                    self._response = self._connect()
                count = self._response.readinto(buffer)
                if count == 0 and self._size is not None and self._at < self._size:
                    raise ConnectionError(f"cut short at byte {self._at} of {self._size}")
                self._at += count
                return count
            except (OSError, http.client.HTTPException) as error:
                final = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (408, 429)
                if final or attempt == _TRIES - 1:
                    absent = isinstance(error, urllib.error.HTTPError) and error.code in (403, 404, 410)
                    raise (FileNotFoundError if absent else OSError)(one_line(error)) from None
                self._response = None
                time.sleep(_PAUSE * 2**attempt)
        raise AssertionError("unreachable")

    def _connect(self) -> http.client.HTTPResponse:
        headers = {"Range": f"bytes={self._at}-"} if self._at else {}
        response = urllib.request.urlopen(urllib.request.Request(self._url, headers=headers), timeout=_TIMEOUT)
        length = response.headers.get("Content-Length")
        size = None if length is None else int(length)
        if response.status == 206:
            size = None if size is None else size + self._at
        elif self._at:  # a server without range requests starts again
            left = self._at
            while left and (data := response.read(min(left, 1 << 20))):
                left -= len(data)
        if self._at and size != self._size:
            raise OSError("has changed while it was read")
        self._size = size
        return response


def file_name(url: str) -> str:
    return re.split(r"[?#]", url)[0].rpartition("/")[2]


def shown(url: str) -> str:
    """A URL without the signature that it may carry."""
    return re.sub(r"://[^/@]*@", "://", re.split(r"[?#]", url)[0])


def one_line(error: Exception) -> str:
    """The message of an error in one line, with the code of an HTTP error, or what to do where the Hub is closed."""
    for one in (error, error.__cause__):  # of a FileNotFoundError
        kinds = [kind.__name__ for kind in type(one).__mro__]
        if closed := next((text for name, text in _CLOSED.items() if name in kinds), None):
            return closed
        if getattr(getattr(one, "response", None), "status_code", None) in (401, 403):
            return "no access; log in anew (hf auth login) or set a valid HF_TOKEN"
    code = f"HTTP {error.code} " if isinstance(error, urllib.error.HTTPError) else ""
    # Not str(error): webdataset adds the whole URL to its arguments, with the signature that it may carry.
    said = getattr(error, "reason", None) or getattr(error, "strerror", None) or next(iter(error.args), "")
    return code + " ".join((str(said).partition(" @ <")[0] or type(error).__name__).split())[:200]
