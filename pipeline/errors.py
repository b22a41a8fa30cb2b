"""What went wrong, in words for the person who can mend it.

Every error names what was expected, what came, where, and what to do. Commands print the sentence and exit with
status 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from reprlib import repr as brief
from types import NoneType, UnionType
from typing import Any

Form = type | UnionType | Mapping[Any, Any] | list[Any]
"""What plain values read from a file should look like, see `misfit`."""

WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    dict: "an object",
    list: "a list",
    NoneType: "null",
}


class UserError(ValueError):
    """Something the user gave cannot be used; the message says what was expected, what came and what to do."""

    def __str__(self) -> str:
        """The message in one line of print, whatever names of files or words of other libraries it holds."""
        return one_line(super().__str__())


class ConfigError(UserError):
    """A parameter is unknown, of the wrong type, or impossible together with others; the message names its key."""


def at_least(least: float, **values: float) -> None:
    """Refuse settings below `least`.

    Raises:
        ConfigError: one of `values` is smaller, or no number; the message names it.
    """
    for name, value in values.items():
        if not value >= least:
            raise ConfigError(f"{name} must be at least {least}, but is {value}")


class InputError(UserError):
    """An image, mask, shard or folder cannot be read or does not have the promised form; the message names it."""


class CheckpointError(UserError):
    """A weight file does not fit the network it is meant for, or is not what its record says; the message names it."""


def one_line(text: str) -> str:
    """A text with spaces for line breaks, and with what cannot be printed in Python's escapes."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in " ".join(text.splitlines())
    )


def reason(error: BaseException) -> str:
    """What an error of Python or of a library says, for the middle of a sentence."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it would take more memory than there is"
    return " ".join(str(error).split()).rstrip(".") or "it is damaged"


def misfit(value: Any, form: Form) -> str | None:
    """The first place at which plain values are not as they should be, in words; None if there is none.

    A form is a type (an int stands for a float, a bool for no number, and floats are finite), types joined by |, a list
    with the form of all entries, or a mapping with the forms of the keys that an object must have; under the key `str`
    stands the form of every other entry.
    """
    return next(_misfits(value, form, ""), None)


def _misfits(value: Any, form: Form, place: str) -> Iterator[str]:
    if isinstance(form, Mapping) and isinstance(value, dict):
        yield from (_at(place, f"{key} is missing") for key in form if key is not str and key not in value)
        for key, item in value.items():
            if key in form or str in form:
                yield from _misfits(item, form.get(key, form.get(str)), _at(place, key))
    elif isinstance(form, list) and isinstance(value, list):
        for number, item in enumerate(value):
            yield from _misfits(item, form[0], _at(place, number))
    elif isinstance(form, Mapping | list):
        yield _unlike(place, list if isinstance(form, list) else dict, value)
    elif not _is(value, form):
        yield _unlike(place, form, value)


def _at(place: str, key: object) -> str:
    return f"{place}.{key}" if place else str(key)


def _is(value: Any, form: type | UnionType) -> bool:
    if isinstance(form, UnionType):
        return any(_is(value, kind) for kind in form.__args__)
    if form is float:
        return type(value) in (int, float) and _is_finite(value)
    return type(value) is form


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond the largest float
        return False


def _unlike(place: str, form: type | UnionType, value: Any) -> str:
    kinds = form.__args__ if isinstance(form, UnionType) else (form,)
    return f"{place or 'it'} should be {' or '.join(WORDS[kind] for kind in kinds)}, but is {_shown(value)}"


def _shown(value: Any) -> str:
    plain = {None: "null", True: "true", False: "false"}
    return plain[value] if value is None or isinstance(value, bool) else brief(value)
