"""What a result was made from: digests of parameters, files and code."""

from __future__ import annotations

import ast
import hashlib
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

REGISTRIES = frozenset({"pipeline.methods", "pipeline.data", "pipeline.data.masks"})
"""Tables that name many things of which a result uses one: reaching one does not mean depending on all its rows."""

WITNESSES = frozenset(
    {
        "pipeline.experiment.tracking",
        "pipeline.experiment.progress",
        "pipeline.experiment.runtime",
        "pipeline.errors",
        "pipeline.files",
    }
)
"""Modules that look on, report, choose a device or write what they are given, and cannot change a result."""


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def imported_by(module: str) -> frozenset[str]:
    """First-party modules that the source of `module` imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source_of(module).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found.update(resolved for name in names if (resolved := _module_part(name)))
    return frozenset(found - {module})


def source_of(module: str) -> Path:
    """The file of a first-party module."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _module_part(name: str) -> str | None:
    if name.split(".")[0] not in ("pipeline", "stages"):
        return None
    return name if source_of(name).exists() and find_spec(name) else _module_part(name.rpartition(".")[0])


def closure(*modules: str, without: frozenset[str] = REGISTRIES | WITNESSES) -> frozenset[str]:
    """All first-party modules reached from `modules` by imports, themselves included, not passing through `without`."""
    seen: set[str] = set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        if module not in seen and module not in without:
            seen.add(module)
            todo.extend(imported_by(module))
    return frozenset(seen)


def code_digest(*modules: str) -> str:
    """SHA-256 over the sources of everything `modules` reach."""
    return digest({module: file_digest(source_of(module)) for module in sorted(closure(*modules))})
