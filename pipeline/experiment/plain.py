"""Plain values out of YAML: words, numbers, lists and mappings, in numbers and sizes that parameters can have."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from reprlib import repr as brief
from types import UnionType
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from pipeline.errors import ConfigError, reason

VALUES_LIMIT, DEPTH_LIMIT, NUMBER_LIMIT = 20_000, 12, 2**53
"""More values, deeper ones and larger numbers are no parameters of this pipeline."""


def parse_yaml(text: str | bytes, name: str) -> Any:
    """The value of a YAML 1.2 text, which errors call `name`.

    Raises:
        ConfigError: it is none.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}" if mark else ""
        problem = error.problem or error.context or "it is damaged"
        raise ConfigError(f"{name}: expected YAML, but {' '.join(problem.split())}{where}.") from error
    except Exception as error:  # a value that is not what its tag says can fail in any way
        raise ConfigError(f"{name}: expected YAML, but {reason(error)}.") from error


def odd(values: dict[str, Any]) -> str | None:
    """The first value that is no plain one, such as a date or nan, in words."""
    for number, (place, item) in enumerate(_walk(values, "", 0)):
        if number == VALUES_LIMIT or place.count(".") >= DEPTH_LIMIT:
            return f"{place[:80]}: there are over {VALUES_LIMIT} values, or they are nested over {DEPTH_LIMIT} deep"
        keys = [key for key in item if not _is_plain(key, str)] if isinstance(item, dict) else []
        if keys:
            return f"{place or 'at the top'}: expected keys in letters, but one is {brief(keys[0])}"
        if not isinstance(item, dict | list) and not _is_plain(item, str | int | float | None):
            return (
                f"{place}: expected a finite number up to 2^53, words in one line, a list or a mapping, but it is "
                f"{brief(item)}"
            )
    return None


def _walk(value: Any, place: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Every value with its dotted name; aliases are followed, so there may be endlessly many."""
    yield place, value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if depth <= DEPTH_LIMIT:
        for key, item in parts:
            yield from _walk(item, f"{place}.{key}".lstrip("."), depth + 1)


def _is_plain(value: Any, kinds: type | UnionType) -> bool:
    if not isinstance(value, kinds):
        return False
    if isinstance(value, str):
        return not any(unicodedata.category(character) in ("Cc", "Cs") for character in value)
    return not isinstance(value, int | float) or abs(value) <= NUMBER_LIMIT
