"""Packages that offer rules, as pip lays them out."""

import os
import subprocess
import sys

import pytest


@pytest.fixture
def install_rules(tmp_path):
    """`install_rules(package, entry_points, modules)` puts a distribution on the path of a new process.

    It returns `run(code)`, which gives what the code writes to (stdout, stderr) there. Several calls add up.
    """

    def install(package, entry_points, modules):
        metadata = tmp_path / f"{package.replace('-', '_')}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", "utf-8")
        lines = [f"{name} = {value}" for name, value in entry_points.items()]
        (metadata / "entry_points.txt").write_text("\n".join(["[vitwarm.rules]", *lines, ""]), "utf-8")
        for name, code in modules.items():
            (tmp_path / f"{name}.py").write_text(code, "utf-8")
        return run

    def run(code):
        path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
        )
        return done.stdout, done.stderr

    return install
