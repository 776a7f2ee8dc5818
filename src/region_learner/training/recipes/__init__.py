"""
Recipes: YAML files with the arguments of a run. The comment at the top of each file describes the recipe in one line,
and gives its command, the data that it needs and the results to expect.
"""

from pathlib import Path
from typing import Any

import yaml

from ...errors import nearest_or_all
from ...files import near_file


def list_recipes() -> dict[str, Path]:
    """Returns the recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def recipe_description(path: Path) -> str:
    """Returns the first line of a recipe's comment."""
    with open(path, encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def read_recipe(name_or_path: str) -> dict[str, Any]:
    """
    Returns the content of a recipe: one that comes with the package, by its name, or any YAML file.

    Raises:
        ValueError: the recipe is not known, or the file does not contain a mapping.
    """
    recipes = list_recipes()
    path = recipes.get(name_or_path, Path(name_or_path))
    if not path.is_file():
        near = near_file(path)
        hint = nearest_or_all(name_or_path, recipes) if near == "." else near
        raise ValueError(f"{name_or_path!r} is neither a recipe nor a file{hint}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must contain a mapping of argument names to values.")
    return values
