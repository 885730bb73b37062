"""Compiling `step.cpp` for a width and a number of heads."""

import ctypes
import functools
import hashlib
import os
import shlex
import subprocess
from pathlib import Path

from vitwarm.cache import cache_dir
from vitwarm.errors import UserError
from vitwarm.files import whole_file

SOURCE = Path(__file__).with_name("step.cpp")
# GCC 12's own tuning for AMD's Zen 4 reads operands from memory again and again: a tenth slower than the generic one.
FLAGS = ("-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-mtune=generic", "-shared", "-fPIC")
NATIVE = ("-march=native", "-mcpu=native")  # the first that the compiler knows: both mean this machine's processor


class Unbuilt(Exception):
    """No compiled code; the message says why."""


@functools.cache
def library(width: int, heads: int) -> ctypes.CDLL | Unbuilt:
    """The compiled code for decoders of a size, or why there is none; tried once in a process.

    There is none where no compiler is, it fails, or the cache folder cannot be written to.
    """
    try:
        return _library(width, heads)
    except Unbuilt as error:
        return error


def _library(width: int, heads: int) -> ctypes.CDLL:
    """Load the code from the cache folder, where it is made if it is not there.

    The name of its file is a digest of the source, of the command, and of all that the compiler tells of itself and the
    processor. So a folder that several machines share has a file for each kind.
    """
    compiler, native, about = _compiler()
    command = [*compiler, *FLAGS, native, f"-DWIDTH={width}", f"-DHEADS={heads}"]
    digest = hashlib.sha256(b"\0".join([SOURCE.read_bytes(), " ".join(command).encode(), about])).hexdigest()[:16]
    try:
        path = cache_dir() / "tiny" / f"decoder-{width}-{heads}-{digest}.so"
    except UserError as error:  # no home folder
        raise Unbuilt(str(error)) from error
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path, shared=True) as aside:
                _run([*command, str(SOURCE), "-o", str(aside)])
        found = ctypes.CDLL(str(path))
    except OSError as error:
        raise Unbuilt(f"{path.parent}: {error.strerror or error}") from error
    found.tiny_decoder.restype = ctypes.c_int
    return found


@functools.cache
def _compiler() -> tuple[list[str], str, bytes]:
    """The command of the compiler, its flag for this processor, and the macros that it then defines."""
    named = os.environ.get("CXX") or "c++"
    try:
        compiler = shlex.split(named)
    except ValueError as error:
        raise Unbuilt(f"CXX={named}: {error}") from error
    for flag in NATIVE:
        try:
            return compiler, flag, _run([*compiler, *FLAGS, flag, "-dM", "-E", "-x", "c++", os.devnull])
        except Unbuilt as error:
            failure = error
    raise failure


def _run(command: list[str]) -> bytes:
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout
    except OSError as error:
        raise Unbuilt(f"no C++ compiler {command[0]!r}: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {error.returncode}"]
        raise Unbuilt(f"{command[0]} fails: {lines[0]}") from error
