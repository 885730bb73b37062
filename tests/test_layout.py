"""The house rules that no other test would notice: floors, lean imports, commands, files."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vitwarm.cli import SUBCOMMANDS

ROOT = Path(__file__).resolve().parents[1]

# From the bottom up; a module imports from its own floor and those below it (docs/design.md).
FLOORS = [
    {"cache", "errors", "files", "keys", "parallel", "plotting", "reading", "signals"},
    {"procedural"},
    {"config", "amounts", "selection"},
    {"recipe", "checks"},
    {"trunk"},
    {"data"},
    {"exports"},
    {"transfer"},
    {"training"},
    {"stages"},
    {"analysis", "budget"},
    {"assembly"},
    {"validate", "cost", "result"},
    {"banner"},
    {"run", "run_folder", "seed_runs", "study", "lab", "warming"},
    {"cli"},
]


def imported(path: Path) -> set[str]:
    """Names below `vitwarm` that a module imports anywhere in it, functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "vitwarm" else [node.module]
        else:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("vitwarm.")}
    return found


def test_imports_go_downwards_only():
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    modules = [p for p in (ROOT / "vitwarm").rglob("*.py") if p.name != "__main__.py"]
    assert len(modules) > 60
    for path in modules:
        own = path.relative_to(ROOT / "vitwarm").parts[0].removesuffix(".py")
        for other in imported(path) if own != "__init__" else ():
            assert floor[other] <= floor[own], f"{path} imports {other} from a floor above"
    for path in (ROOT / "vitwarm/procedural").glob("*.py"):
        assert imported(path) <= {"procedural", "errors", "files", "keys", "parallel"}, path


def test_text_of_files_is_read_and_written_in_utf_8_by_name():
    """Ruff sees `open` alone."""
    for path in (p for folder in ("vitwarm", "tools") for p in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                named = any(keyword.arg == "encoding" for keyword in node.keywords)
                assert named or node.func.attr not in ("read_text", "write_text"), f"{path}, line {node.lineno}"


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import vitwarm", ("numpy", "torch")),
        ("import vitwarm.cli; from vitwarm.recipe import load_recipe", ("torch", "timm", "accelerate")),
    ],
)
def test_imports_are_lean(statement, absent):
    code = f"{statement}; import sys; print(*[m for m in {absent} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_there_is_one_command_and_each_tool_is_a_subcommand_of_it():
    scripts = re.findall(r"^\[project.scripts\]\n((?:.+\n)+)", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert scripts == ['vitwarm = "vitwarm.cli:main"\n']
    called = {}
    for tool in (ROOT / "tools").glob("*.py"):
        if tool.name not in (
            "benchmark.py",
            "gpu_evidence.py",
            "models.py",
            "redraw.py",
            "site_links.py",
        ):  # of the checkout alone
            lines = tool.read_text().splitlines()
            assert len(lines) < 10, tool
            called[re.fullmatch(r'    tool\("([\w-]+)"\)', lines[-1])[1]] = tool
    assert called.keys() == set(SUBCOMMANDS) - {"recipes"}


def test_files_that_code_and_recipes_point_to_are_there():
    files = [p for folder in ("recipes", "tools", "vitwarm") for p in (ROOT / folder).rglob("*")]
    for path in (p for p in files if p.suffix in (".py", ".sh", ".yaml")):
        for name in re.findall(r"\b((?:docs|recipes|tools)/[\w./-]+\.(?:md|py|sh|yaml))\b", path.read_text()):
            assert (ROOT / name).exists(), f"{path}: {name}"
