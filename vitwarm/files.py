"""Atomic writes of files and folders, file hashes, and locks between processes."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vitwarm.errors import UserError


def expanded(path: str | Path) -> Path:
    """A user's path, with the home folder in place of ~ or ~NAME.

    Raises:
        UserError: nobody has that name.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error}") from error


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Raises:
        OSError: they are not; the disk may be full.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def own_file(path: str, flags: int) -> int:
    """An `opener` of `open` that follows no link: a folder that someone prepared must not lead us to other files."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def copy_plain(source: Path, target: Path) -> None:
    """Copy a file, or a folder with all that is in it, that another may have made: files and folders, no links.

    Raises:
        UserError: something else is there.
    """
    if source.is_symlink() or not (source.is_dir() or source.is_file()):
        raise UserError(f"{source} is a link or no plain file, and is not copied; put a copy in its place")
    if source.is_file():
        shutil.copyfile(source, target)
        return
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        copy_plain(path, target / path.name)


@contextlib.contextmanager
def whole_file(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield a path to write to; its file is flushed and renamed to `path` when the block ends, or removed on an error.

    Args:
        path: the file; its folder must exist.
        shared: several processes may write the file at once; each writes aside under a name of its own, and the last
            one's stays.

    Raises:
        OSError: full disk, no permission.
    """
    aside = _aside(path, shared)
    try:
        yield aside
        _share(aside)
        flush(aside)
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):  # report the first error
            aside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a whole file or none, in UTF-8.

    Raises:
        OSError: full disk, no permission.
    """
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or none.

    Raises:
        OSError: full disk, no permission.
    """
    with whole_file(path) as aside:
        aside.write_bytes(content)


@contextlib.contextmanager
def whole_folder(folder: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield a folder to write into; it is renamed to `folder` when the block ends, or removed on an error.

    Args:
        folder: the folder; those above it are made.
        shared: several processes may make the same folder at once; each writes aside under a name of its own, and the
            first one's stays.

    Raises:
        OSError: full disk, no permission.
    """
    folder = folder.resolve()  # where a link leads
    aside = _aside(folder, shared)
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    try:
        aside.mkdir(parents=True)
        yield aside
        for path in (*aside.iterdir(), aside):
            if path.is_file():
                _share(path)
            flush(path)
        (_keep_first if shared else _replace)(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _share(path: Path) -> None:
    """Give a file the permissions of any new file; safetensors makes its own for the owner alone."""
    mask = os.umask(0o077)  # it cannot be asked for without setting it
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _aside(path: Path, shared: bool) -> Path:
    """Where to write what becomes `path`; what killed processes of this machine left there is removed."""
    if not shared:
        return path.with_name(f".{path.name}.tmp")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        owner = re.search(r"\.([^.]*)-(\d+)-\w+\.tmp$", left.name)
        if owner and owner[1] == _machine() and not _is_alive(int(owner[2])):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def _machine() -> str:
    return os.uname().nodename.replace(".", "_")


def _replace(aside: Path, folder: Path) -> None:
    """Put a folder in the place of another; a link to that stays, and shows the new one."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _keep_first(aside: Path, folder: Path) -> None:
    try:
        aside.rename(folder)
        flush(folder.parent)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(aside)  # another process was first, and its folder is equal


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal, read in pieces."""
    with open(path, "rb") as handle:
        digest = hashlib.sha256()
        while chunk := handle.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(path: Path, refusal: str | None = None) -> Iterator[None]:
    """Hold a lock file until the block ends, or the process does, however it ends.

    Forked loader workers do not hold the lock, so that they cannot outlive its owner with it. Where the file system
    has no locks, the block runs without one.

    Args:
        path: the lock file; made, and left there.
        refusal: what to tell the user when another process holds the lock; None waits until it is free.

    Raises:
        UserError: another process holds the lock.
        OSError: the file cannot be made.
    """
    with open(path, "a", encoding="utf-8", opener=own_file) as handle:
        if refusal is None:
            with contextlib.suppress(OSError):
                fcntl.lockf(handle, fcntl.LOCK_EX)
        elif not _lock_soon(handle):
            raise UserError(refusal)
        yield


def is_locked(path: Path) -> bool:
    """Whether another process on this machine holds a lock file; one that may not be opened counts as held.

    Not for a lock of this process, which would lose it.
    """
    try:
        with open(path, "r+", encoding="utf-8") as handle:
            return not _try_lock(handle)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    except OSError:
        return True


def _lock_soon(handle: IO[str]) -> bool:
    """Try for a fifth of a second: who asks `is_locked` holds a lock for a moment."""
    for _ in range(10):
        if _try_lock(handle):
            return True
        time.sleep(0.02)
    return False


def _try_lock(handle: IO[str]) -> bool:
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)  # others: a file system without locks
    return True
