"""Figures need no display, and leave alone the backend that a notebook chose."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vitwarm.errors import UserError
from vitwarm.plotting import new_figure, save_figure

SAVES = """
import sys
from pathlib import Path
from vitwarm.plotting import new_figure, save_figure
figure = new_figure(figsize=(1, 1))
figure.subplots().plot([0, 1])
save_figure(figure, Path(sys.argv[1]))
import matplotlib, os
assert "matplotlib.pyplot" not in sys.modules
print(os.environ["MPLBACKEND"], dict.__getitem__(matplotlib.rcParams, "backend"))
"""


@pytest.mark.parametrize(
    ("backend", "kept"),
    [("module://no_such_notebook.backend", "module://no_such_notebook.backend"), ("tkagg", "tkagg"), ("unknown", None)],
)
def test_any_backend_will_do_and_stays(tmp_path, monkeypatch, backend, kept):
    monkeypatch.setenv("MPLBACKEND", backend)
    monkeypatch.delenv("DISPLAY", raising=False)
    command = [sys.executable, "-c", SAVES, str(tmp_path / "f.png")]
    variable, chosen = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split(maxsplit=1)
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    assert variable == backend and (kept is None or chosen.strip() == kept)


def test_the_suffix_says_the_format_and_a_failure_leaves_nothing(tmp_path):
    save_figure(new_figure(), tmp_path / "f.svg")
    assert b"<svg" in (tmp_path / "f.svg").read_bytes()
    with pytest.raises(ValueError, match="not supported"):
        save_figure(new_figure(), tmp_path / "f.nothing")
    assert [path.name for path in tmp_path.iterdir()] == ["f.svg"]


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"need matplotlib: pip install 'vitwarm\[plot\]'"):
        new_figure()


def test_pages_and_pictures_of_the_documentation_name_each_other():
    root = Path(__file__).parents[1]
    shown = set()
    for page in [root / "README.md", *(root / "docs").rglob("*.md")]:
        for alternative, file in re.findall(r"!\[([^]]*)\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert alternative, f"{page}: {file} has no text for those who do not see it"
            shown.add(file if "://" in file else (page.parent / file).resolve())
    drawn = {path for kind in ("png", "svg") for path in (root / "docs").rglob(f"*.{kind}")}
    assert drawn - shown <= {root / "docs/images/idea.svg"}  # shown on the package index by its address
    assert all(path in drawn for path in shown if isinstance(path, Path))
