"""What went wrong, in words for the person who can mend it.

Every error names what was expected, what came, where, and what to do. Commands print the sentence and exit with
status 2.
"""

from __future__ import annotations


class UserError(ValueError):
    """Something the user gave cannot be used; the message says what was expected, what came and what to do."""


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
