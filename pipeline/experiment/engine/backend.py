"""The word that says where units run: from the command line or the environment, never from params.yaml."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal, cast

from pipeline.errors import ConfigError

VARIABLE = "TIRAMISU_ENGINE"
WORDS = "inline, process, process:N, ray, ray:N, ray:ADDRESS or ray:N@ADDRESS"

_FORM = re.compile(r"(?P<kind>inline|process|ray)(?::(?:(?P<workers>[1-9]\d*)(?:@|$))?(?P<address>[^@]*))?")


@dataclass(frozen=True, kw_only=True)
class Backend:
    """Where units run.

    Attributes:
        kind: inline = one after the other in this process.
        workers: how many; None: one per GPU, or without GPUs one per core.
        address: of a running Ray cluster ("auto", "host:6379"); None: Ray on this machine alone.
    """

    kind: Literal["inline", "process", "ray"] = "inline"
    workers: int | None = None
    address: str | None = None


INLINE = Backend()


def parse(text: str, source: str = "--engine") -> Backend:
    """Understand a backend's word.

    Raises:
        ConfigError: it is none.
    """
    match = _FORM.fullmatch(text)
    if match:
        kind, workers, address = match.group("kind", "workers", "address")
        plain = {"inline": not (workers or address), "process": not address, "ray": True}[kind]
        if plain and not text.endswith((":", "@")):
            return Backend(
                kind=cast("Literal['inline', 'process', 'ray']", kind),
                workers=int(workers) if workers else None,
                address=address or None,
            )
    raise ConfigError(f"{source}: expected {WORDS}, but it is {text!r}.")


def chosen() -> Backend:
    """The backend named by the environment variable TIRAMISU_ENGINE, else inline."""
    return parse(os.environ.get(VARIABLE) or "inline", VARIABLE)
