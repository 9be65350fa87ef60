"""The values of a recipe's file, checked for their kind; what they mean is the recipe's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mimo_edge.runtime.bundle.errors import RecipeError


class TomlValues:
    """Takes values out of the tables of a file. Raises RecipeError that names the file, the key
    and the value."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keys(self, raw: Any, owner: str, known: tuple[str, ...]) -> None:
        """It is a table with none but these keys."""
        if not isinstance(raw, Mapping):
            raise RecipeError(f"{self.path}: {owner} must be a table, not {raw!r}")
        for key in raw:
            self.choice(key, known, f"a key of {owner}")

    def choice(self, value: Any, known: tuple[str, ...], what: str) -> None:
        """It is one of these."""
        if value not in known:
            raise RecipeError(f"{self.path}: {what} is {value!r}; choose one of {', '.join(known)}")

    def table(self, raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        """A table, empty where it is left out."""
        value = raw.get(key, {})
        if not isinstance(value, dict):
            raise RecipeError(f"{self.path}: {key} must be a table, not {value!r}")
        return value

    def tables(self, raw: Mapping[str, Any], key: str) -> list[Any]:
        """A list, empty where it is left out; what is in it is to be checked."""
        value = raw.get(key, [])
        if not isinstance(value, list):
            raise RecipeError(f"{self.path}: {key} must be a list of tables, not {value!r}")
        return value

    def text(self, raw: Mapping[str, Any], key: str) -> str:
        """A text that must be there."""
        value = raw.get(key)
        if not isinstance(value, str) or not value:
            raise RecipeError(f"{self.path}: {key} must be a text, not {value!r}")
        return value

    def texts(self, raw: Mapping[str, Any], key: str) -> tuple[str, ...]:
        """A list of texts, empty where it is left out."""
        found = raw.get(key, [])
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise RecipeError(f"{self.path}: {key} must be a list of texts, not {found!r}")
        return tuple(found)
