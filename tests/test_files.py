"""Files and folders are whole or absent, whoever writes and however it fails; a lock ends with its process."""

import contextlib
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from vitwarm.errors import UserError
from vitwarm.files import copy_plain, is_locked, locked, sha256_of, whole_file, whole_folder, write_bytes, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, shared):
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError), whole_file(path, shared=shared) as aside:
        aside.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]
    with whole_file(path, shared=shared) as aside:
        assert aside.name.startswith(".a.bin.") and aside.name.endswith(".tmp")  # where leftovers are looked for
        aside.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and names(tmp_path) == ["a.bin"]


WRITES = "import sys; from vitwarm.files import *; write_text(Path(sys.argv[1]), chr(0xe9) + chr(0x2264))"


def test_text_is_utf_8_under_any_locale(tmp_path):
    command = [sys.executable, "-X", "utf8=0", "-c", WRITES, tmp_path / "t"]
    subprocess.run(command, env=os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}, check=True)
    assert (tmp_path / "t").read_bytes() == b"\xc3\xa9\xe2\x89\xa4"


def test_writers_of_a_shared_file_do_not_meet(tmp_path):
    path = tmp_path / "a"
    with whole_file(path, shared=True) as first:
        with whole_file(path, shared=True) as second:
            assert first != second
            second.write_text("second")
        first.write_text("first")
    assert path.read_text() == "first" and names(tmp_path) == ["a"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "made" / "folder"
    for content in ("one", "two"):
        with whole_folder(folder) as aside:
            (aside / content).write_text(content)
    assert names(folder) == ["two"]
    with pytest.raises(RuntimeError), whole_folder(folder) as aside:
        (aside / "half").write_text("half")
        raise RuntimeError
    assert names(folder) == ["two"] and names(folder.parent) == ["folder"]


def test_the_first_of_several_makers_of_a_folder_wins(tmp_path):
    folder = tmp_path / "folder"
    with whole_folder(folder, shared=True) as late:
        with whole_folder(folder, shared=True) as early:
            (early / "early").write_text("")
        (late / "late").write_text("")
    assert names(folder) == ["early"] and names(tmp_path) == ["folder"]


def test_the_digest_is_sha_256_of_any_length(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B
    (tmp_path / "million").write_bytes(b"a" * 1_000_000)
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "million") == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"


@contextlib.contextmanager
def holder(path):
    """Another process that holds a lock until its standard input closes."""
    code = (
        "import os, sys; from pathlib import Path; from vitwarm.files import locked\n"
        "with locked(Path(sys.argv[1])):\n print('held', flush=True)\n sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, path], text=True, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        yield process


def test_a_lock_is_held_until_its_process_ends(tmp_path):
    path = tmp_path / ".lock"
    assert not is_locked(path)
    with holder(path) as process:
        assert is_locked(path)
        with pytest.raises(UserError, match="taken"), locked(path, "taken"):
            pytest.fail("two hold one lock")
        process.kill()
        process.wait()
        assert not is_locked(path)
        with locked(path, "taken"):
            pass


def test_whoever_waits_gets_the_lock_next(tmp_path):
    path = tmp_path / ".lock"
    with holder(path) as process:
        waiting = subprocess.Popen(
            [sys.executable, "-c", f"from vitwarm.files import *\nwith locked(Path({str(path)!r})): print('mine')"],
            stdout=subprocess.PIPE,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1)
        process.stdin.close()
        assert waiting.communicate()[0] == b"mine\n"


FORKS = """
import os, sys, time
from pathlib import Path
from vitwarm.files import locked
with locked(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        time.sleep(60)
    Path(sys.argv[2]).write_text(str(child))
    os._exit(0)
"""


def test_a_forked_child_does_not_hold_the_lock_of_its_parent(tmp_path):
    path, child = tmp_path / ".lock", tmp_path / "child"
    subprocess.run([sys.executable, "-c", FORKS, path, child], check=True)
    assert not is_locked(path)
    os.kill(int(child.read_text()), signal.SIGKILL)  # an error if it had ended before the lock was looked at


def test_a_file_system_without_locks_goes_on_without(tmp_path, monkeypatch):
    def without(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", without)
    with locked(tmp_path / ".lock"), locked(tmp_path / ".lock", "taken"):
        assert not is_locked(tmp_path / ".lock")


def test_an_error_is_told_though_nothing_can_be_cleared_away(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "nowhere" / "a", "text")


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_files_have_the_permissions_of_any_new_file(tmp_path, mask):
    """safetensors makes its files for their owner alone."""
    before = os.umask(mask)
    try:
        for shared in (False, True):
            with whole_file(tmp_path / "a", shared=shared) as aside:
                save_file({"x": np.zeros(1)}, aside)
            with whole_folder(tmp_path / f"folder{shared}", shared=shared) as aside:
                save_file({"x": np.zeros(1)}, aside / "a")
            for path in (tmp_path / "a", tmp_path / f"folder{shared}" / "a"):
                assert path.stat().st_mode & 0o777 == 0o666 & ~mask
        assert os.umask(mask) == mask
    finally:
        os.umask(before)


def test_leftovers_of_dead_processes_are_swept(tmp_path):
    machine = os.uname().nodename.replace(".", "_")
    ended = subprocess.Popen(["true"])
    ended.wait()
    gone = [tmp_path / f".a.{machine}-{ended.pid}-0f.tmp", tmp_path / f".a.{machine}-{ended.pid}-1f.tmp"]
    gone[0].mkdir()
    gone[1].touch()
    kept = [
        f".a.{machine}-{os.getpid()}-0f.tmp",
        f".a.elsewhere-{ended.pid}-0f.tmp",
        f".b.{machine}-{ended.pid}-0f.tmp",
    ]
    for name in kept:
        (tmp_path / name).touch()
    with whole_folder(tmp_path / "a", shared=True):
        pass
    assert names(tmp_path) == sorted(["a", *kept])


def test_only_plain_files_are_copied(tmp_path):
    source = tmp_path / "from"
    (source / "in").mkdir(parents=True)
    (source / "in" / "a").write_text("a")
    copy_plain(source, tmp_path / "to")
    assert (tmp_path / "to" / "in" / "a").read_text() == "a"
    for make in (lambda p: p.symlink_to(source / "in" / "a"), os.mkfifo):
        make(source / "in" / "b")
        with pytest.raises(UserError, match=r"in/b is a link or no plain file"):
            copy_plain(source, tmp_path / "other")
        (source / "in" / "b").unlink()
