"""The pages on rules: their code runs, their commands work, and no rule is missing."""

import json
import re
import shlex
from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np
import pytest
from bench.rules import markdown

from vitwarm.cli import call
from vitwarm.procedural import keyed_rng, list_rules, make_rule, registry, rule_class

DOCS = Path(__file__).parents[2] / "docs"
GALLERY = (DOCS / "rules.md").read_text()


def test_the_worked_example_is_a_rule(monkeypatch):
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    scope = {"__name__": "example"}
    for code in re.findall(r"```python\n(.*?)```", (DOCS / "adding_a_rule.md").read_text(), re.S):
        exec(code, scope)
    rule = make_rule("cycle", symbols=9, period=4)
    rows = rule.sample(keyed_rng(0), 50, 11)
    assert (rows.tokens[:, 4:8] == rows.tokens[:, :4]).all() and (rows.tokens[:, 8:] == rows.tokens[:, :3]).all()
    hidden = np.where(rows.scored, 1, rows.tokens)
    assert (rule.solve(hidden, rows.scored) == rows.tokens).all()
    assert scope["batch"].inputs.shape == (256, 196)
    assert scope["control"].sample(keyed_rng(0), 2, 11).scored.sum() == 8
    with pytest.raises(ValueError, match="cycle.period must be"):
        make_rule("cycle", period=0)


def test_the_worked_example_is_a_rule_of_a_package_too(install_rules):
    page = (DOCS / "adding_a_rule.md").read_text()
    (lines,) = re.findall(r'```toml\n\[project.entry-points."vitwarm.rules"\]\n(.*?)```', page, re.S)
    name, module, attribute = re.fullmatch(r'(\w+) = "(\w+):(\w+)"\n', lines).groups()
    run = install_rules(
        "my-rules", {name: f"{module}:{attribute}"}, {module: re.findall(r"```python\n(.*?)```", page, re.S)[0]}
    )
    code = "from vitwarm.procedural import make_rule; print(make_rule('cycle', period=4).identity)"
    assert run(code) == ('{"name": "cycle", "period": 4}\n', "")


@pytest.mark.parametrize("name", list_rules())
def test_the_gallery_has_every_rule_and_all_its_parameters(name):
    chapter = next(text for text in re.split(r"^## ", GALLERY, flags=re.M) if f"### `{name}`\n" in text)
    shared, *sections = re.split(r"^### ", chapter, flags=re.M)
    section = next(text for text in sections if text.startswith(f"`{name}`\n"))
    assert "**Definition.**" in section and "**Papers.**" in section
    for f in fields(rule_class(name)):
        default = "required" if f.default is MISSING else str(f.default)
        default = default.lower() if default in ("None", "True", "False") else default
        row = f"| `{f.name}` | {default} | {f.metadata['help']} |"
        assert row in section or row in shared, row
    images = re.findall(r"\]\((images/rules/[^)]+)\)", section)
    assert images and all((DOCS / image).is_file() for image in images)


@pytest.mark.parametrize("command", re.findall(r"^    (vitwarm show .*)$", GALLERY, re.M))
def test_the_gallery_commands_work(command, capsys):
    arguments = shlex.split(command)[2:]
    if "--png" in arguments:
        at = arguments.index("--png")
        assert (DOCS / "images/rules" / arguments[at + 1]).is_file()
        del arguments[at : at + 2]
    call("show", arguments)
    assert "hidden of" in capsys.readouterr().out


def test_the_python_of_the_gallery_runs():
    scope = {}
    for code in re.findall(r"```python\n(.*?)```", GALLERY, re.S):
        exec(code, scope)


def test_the_results_page_shows_what_was_measured():
    result = json.loads((DOCS / "results" / "rules.json").read_text())
    assert markdown(result) in (DOCS / "results" / "rules.md").read_text()
