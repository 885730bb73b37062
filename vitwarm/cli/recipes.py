"""`vitwarm recipes`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitwarm.cli.guard import say
from vitwarm.cli.words import listing, place
from vitwarm.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    """List the shipped recipes, show one resolved, copy one to edit it.

    list            names and purposes
    show NAME       what the recipe reproduces, then every key with its value, as YAML
    copy NAME FILE  the recipe as a file of yours, to be edited and run: recipe=FILE
    """

    action: Literal["list", "show", "copy"] = place("what to do")
    name: str | None = place("a shipped recipe; `show` also takes a YAML file", None, form="NAME")
    file: Path | None = place("what to write", None, form="FILE.yaml", suffix=".yaml")


def run(options: Options) -> None:
    """List, show or copy."""
    if options.action == "list":
        _check(options.name is None, "recipes list takes nothing more")
        say(recipe_list())
    elif options.action == "show":
        _check(options.name is not None and options.file is None, "write: recipes show NAME")
        print(_shown(str(options.name)), end="")
    else:
        _check(options.file is not None, "write: recipes copy NAME FILE.yaml")
        assert options.file is not None
        _copy(str(options.name), options.file)
        print(f"written: {options.file}; run it with: vitwarm train recipe={options.file}")


def recipe_list() -> str:
    """The shipped recipes and their purposes, one a line."""
    from vitwarm.recipe import list_recipes

    return listing((name, what) for name, _path, what in list_recipes())


def _shown(name: str) -> str:
    """The comment of a recipe, then the resolved recipe."""
    from vitwarm.recipe import freeze, load_recipe, recipe_header

    resolved = freeze(load_recipe([f"recipe={name}"]))
    header = recipe_header(name)
    return header + ("#\n" if header else "") + resolved


def _copy(name: str, file: Path) -> None:
    from vitwarm.files import write_text
    from vitwarm.reading import parse_yaml
    from vitwarm.recipe import recipe_text

    text = recipe_text(name)
    if file.exists():
        raise UserError(f"{file} exists; choose another name, it is not overwritten")
    tree = parse_yaml(text, name)
    for recipe in (tree, *tree.get("variants", {}).values()):
        base = recipe.get("base") or []
        if file.stem in ([base] if isinstance(base, str) else base):  # the copy would be its own base
            raise UserError(f"{name} inherits from the recipe {file.stem}; choose another name for the copy")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)


def _check(holds: bool, why: str) -> None:
    if not holds:
        raise UserError(f"{why}; see vitwarm recipes --help")
