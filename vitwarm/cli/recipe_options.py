"""Options of the subcommands that take a recipe."""

from dataclasses import dataclass

from vitwarm.cli.words import option, rest


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """A recipe and its overrides."""

    recipe: str = option("a shipped recipe (`vitwarm recipes list`) or a YAML file", form="NAME")
    overrides: dict[str, str] = rest("key=value", "a key of the recipe; `vitwarm train --help` lists them", empty=True)

    @property
    def recipe_words(self) -> list[str]:
        """The arguments of `vitwarm.recipe.load_recipe`."""
        return [f"recipe={self.recipe}", *(f"{key}={value}" for key, value in self.overrides.items())]
