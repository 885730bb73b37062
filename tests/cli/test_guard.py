"""Who speaks, on what, and in which words, when a command ends."""

import os
import subprocess
import sys

import pytest

from vitwarm.cli import guard
from vitwarm.errors import UserError


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("rank", "met", "who"), [(0, False, "vitwarm"), (0, True, "vitwarm"), (3, False, "vitwarm (process 3)")]
)
def test_every_process_speaks_until_they_have_met(monkeypatch, capsys, rank, met, who):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(guard, "_has_group", lambda: met)
    monkeypatch.setattr(guard, "_leave_group", lambda: None)
    assert guard.guarded(lambda: fail(UserError("a\nb \x1b[2J https://me:pw@h/a"))) == 2
    assert capsys.readouterr().err == f"{who}: error: a b \\x1b[2J https://...@h/a\n"


def test_the_others_are_silent_once_they_have_met(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(guard, "_has_group", lambda: True)
    monkeypatch.setattr(guard, "_leave_group", lambda: None)
    assert guard.guarded(lambda: fail(UserError("a"))) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "error", [MemoryError("64 GiB"), RuntimeError("[x] DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_is_one_line(capsys, error):
    assert guard.guarded(lambda: fail(error)) == 2
    assert capsys.readouterr().err.startswith("vitwarm: error: out of memory: ")
    with pytest.raises(RuntimeError, match="another"):
        guard.guarded(lambda: fail(RuntimeError("another")))


CLOSED = """
import os, sys
from vitwarm.cli.guard import open_standard_files
open_standard_files()
assert os.open(sys.argv[1], os.O_RDONLY) > 2
print("x", flush=True), print("y", file=sys.stderr, flush=True), sys.stdin.read()
"""


def test_closed_standard_files_are_opened(tmp_path):
    (tmp_path / "code.py").write_text(CLOSED)
    command = f"{sys.executable} {tmp_path / 'code.py'} {tmp_path / 'code.py'} <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], capture_output=True).returncode == 0


def test_what_a_terminal_cannot_show_is_a_question_mark(tmp_path):
    shown = subprocess.run(
        [sys.executable, "-m", "vitwarm", "show", "rule=stack", "count=1"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
    )
    assert (shown.returncode, shown.stderr) == (0, b"") and b"?" in shown.stdout
