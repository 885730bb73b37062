"""What is built for the package index holds what a run needs, wherever it is started."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import vitwarm
from vitwarm.cli import SUBCOMMANDS
from vitwarm.recipe import list_recipes

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {str(p.relative_to(ROOT)) for p in (ROOT / "recipes").rglob("*.yaml")}


@pytest.fixture
def built(tmp_path):
    """Path of a fresh wheel or sdist."""

    def build(kind):
        module = pytest.importorskip(f"hatchling.builders.{kind}")
        builder = {"wheel": "WheelBuilder", "sdist": "SdistBuilder"}[kind]
        return next(iter(getattr(module, builder)(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])))

    return build


def test_an_installed_wheel_lists_and_finds_the_recipes(built, tmp_path):
    with zipfile.ZipFile(built("wheel")) as wheel:
        wheel.extractall(tmp_path / "site")
    assert {f"vitwarm/{name}" for name in RECIPES} <= {
        str(p.relative_to(tmp_path / "site")) for p in (tmp_path / "site").rglob("*.yaml")
    }
    assert (tmp_path / "site/vitwarm/transfer/core_vit/model.safetensors").is_file()
    assert (tmp_path / "site/vitwarm/py.typed").is_file()

    metadata = next((tmp_path / "site").glob("*.dist-info/entry_points.txt")).read_text()
    module, function = re.fullmatch(r"\[console_scripts\]\nvitwarm = ([\w.]+):(\w+)\n*", metadata).groups()

    def said(*words):
        code = f"import sys, {module} as cli; assert cli.__file__.startswith({str(tmp_path / 'site')!r})"
        code += f"; sys.argv = ['/usr/bin/vitwarm', *sys.argv[1:]]; cli.{function}()"
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
        command = [sys.executable, "-c", code, *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    listed = said("recipes", "list")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [name for name, _, _ in list_recipes()]
    assert said("train", "recipe=list").stdout == listed.stdout
    assert "images.train: imagenet/train-*.tar" in said("train", "recipe=vit_b_proc1pct").stderr  # found; no images
    assert said("--version").stdout == f"vitwarm {vitwarm.__version__}\n"
    overview = said("--help").stdout
    for name in SUBCOMMANDS:
        assert re.search(rf"^  {name} ", overview, re.MULTILINE)
        assert said(name, "--help").stdout.startswith(f"usage: vitwarm {name} ")


def test_the_source_archive_holds_recipes_tools_tests_and_core(built):
    with tarfile.open(built("sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"LICENSE", "README.md", "tools/train.py", "tools/env.sh", "tests/test_package.py", "docs/rules.md"}
    assert RECIPES | needed | {"vitwarm/transfer/core_vit/model.safetensors"} <= names
