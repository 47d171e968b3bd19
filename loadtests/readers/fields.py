"""A measurement file, read strictly: what is there must be of the right type, and an error names the file and the key."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contract.command import UsageError
from contract.files import read_json


class Fields:
    """A JSON object and where it lies."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise UsageError(f"{where} is {_kind(value)}; an object is needed")
        self._value, self.where = value, where

    def __contains__(self, key: str) -> bool:
        return self._value.get(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._value)

    def raw(self, key: str) -> Any:
        """The value of `key`, whatever it is. Raises UsageError when it is not there."""
        if key not in self._value:
            raise UsageError(f"{self.where}.{key} is missing; is this file of another version? Measure again")
        return self._value[key]

    def number(self, key: str) -> float:
        """A finite number."""
        value = self.raw(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(key, value, "a number")
        return float(value)

    def text(self, key: str) -> str:
        """A string."""
        value = self.raw(key)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self.raw(key)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def fields(self, key: str) -> Fields:
        """An object."""
        return Fields(self.raw(key), f"{self.where}.{key}")

    def every(self) -> list[tuple[str, Fields]]:
        """All values, each of which must be an object, by key."""
        return [(key, self.fields(key)) for key in self]

    def rows(self, key: str) -> list[Fields]:
        """A list of objects."""
        return [Fields(row, f"{self.where}.{key}[{number}]") for number, row in enumerate(self._list(key))]

    def numbers(self, key: str) -> list[float]:
        """A list of finite numbers."""
        values = self._list(key)
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise self._wrong(key, value, "a list of numbers")
        return [float(value) for value in values]

    def _list(self, key: str) -> list[Any]:
        value = self.raw(key)
        if not isinstance(value, list):
            raise self._wrong(key, value, "a list")
        return value

    def _wrong(self, key: str, value: Any, wanted: str) -> UsageError:
        return UsageError(f"{self.where}.{key} is {_kind(value)}; {wanted} is needed")


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}" if isinstance(value, str | int | float) else type(value).__name__


def read_fields(path: Path) -> Fields:
    """The object in `path`. Raises UsageError when it cannot be read or is no object."""
    return Fields(read_json(path), path.name)
