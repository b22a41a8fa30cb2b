"""Profiles: named overlays on configs/base.yaml, resolved into params.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from reprlib import repr as brief
from typing import Any, cast

from ruamel.yaml import YAML

from pipeline.errors import ConfigError, misfit, reason
from pipeline.experiment.params import check_params, read_yaml
from pipeline.experiment.plain import parse_yaml
from pipeline.experiment.record import write_bytes

WHOLE = frozenset({"datasets", "mask_files"})
"""Sections that an overlay replaces instead of merging into."""

OPEN = frozenset({"steered"})
"""Sections to which an overlay may add entries; what they hold is checked with everything else."""

STANDIN = "data/real"
"""Where profiles for photographs expect them, unless told otherwise."""


def names(root: Path) -> list[str]:
    """The profiles there are."""
    return sorted(path.stem for path in (root / "configs" / "profiles").glob("*.yaml"))


def merge(base: Any, overlay: Mapping[str, Any], whole: frozenset[str] = WHOLE, *, place: str = "") -> None:
    """Put the values of `overlay` into the mapping `base`, in place, key by key.

    Lists and sections in `WHOLE` are replaced, those in `OPEN` may be added to.

    Raises:
        ConfigError: the overlay has a key that the base has not.
    """
    for key, value in overlay.items():
        name = f"{place}{key}"
        if key not in base and place.partition(".")[0] not in OPEN:
            close = get_close_matches(str(key), [str(known) for known in base], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise ConfigError(f"{name}: no such parameter in configs/base.yaml{hint}")
        if isinstance(value, Mapping) and isinstance(base.get(key), Mapping) and name not in whole:
            merge(base[key], value, whole, place=f"{name}.")
        else:
            base[key] = value


def resolve(root: Path, profile: str, settings: Mapping[str, Any] | None = None) -> str:
    """The text of params.yaml for a profile, comments of the base kept, checked.

    Args:
        root: the repository.
        profile: name of a file in configs/profiles.
        settings: further overrides by dotted name ("sweep.images": 4).

    Raises:
        ConfigError: there is no such profile, or the result is not valid.
    """
    check_profile(root, profile)
    read_yaml(root / "configs" / "base.yaml")  # says what is wrong with it
    yaml = YAML()
    yaml.width = 120
    yaml.representer.add_representer(type(None), _null)
    values = yaml.load(root / "configs" / "base.yaml")
    merge(values, read_yaml(root / "configs" / "profiles" / f"{profile}.yaml"))
    if values.get("profile") != profile:
        raise ConfigError(
            f"configs/profiles/{profile}.yaml: must say `profile: {profile}`, because results are kept by that name, "
            f"but says {values.get('profile')!r}."
        )
    for name, value in (settings or {}).items():
        *path, last = name.split(".")
        overlay: dict[str, Any] = {last: value}
        for part in reversed(path):
            overlay = {part: overlay}
        merge(values, overlay, frozenset() if path else WHOLE)
    text = StringIO()
    yaml.dump(values, text)
    check_params(parse_yaml(text.getvalue(), f"profile {profile}"), f"profile {profile}")
    return text.getvalue()


def check_profile(root: Path, profile: str) -> None:
    """Refuse what is no profile.

    Raises:
        ConfigError: configs/profiles has no such file.
    """
    if profile not in names(root):
        close = get_close_matches(profile, names(root), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names(root))}."
        raise ConfigError(f"There is no profile {profile!r}; {hint}")


def _null(representer: Any, _: None) -> Any:
    """Write null as a word."""
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


def resolved(root: Path, profile: str) -> dict[str, Any]:
    """The content of params.yaml for a profile."""
    return cast("dict[str, Any]", parse_yaml(resolve(root, profile), f"profile {profile}"))


def apply(root: Path, profile: str, settings: Mapping[str, Any] | None = None, *, force: bool = False) -> bool:
    """Write params.yaml for a profile; return whether it changed.

    Raises:
        ConfigError: params.yaml holds edits of one's own, which would be lost; `force` discards them.
    """
    text, path = resolve(root, profile, settings), root / "params.yaml"
    try:
        now = path.read_text(errors="replace") if path.exists() else None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({reason(error)}), and is not replaced; move it away.") from error
    if now == text:
        return False
    if now is not None and not force and not _is_resolved(root, now):
        raise ConfigError(
            f"{path.name} holds edits of your own, which writing profile {profile!r} would lose: run `dvc repro` to "
            "use them as they are, keep them as a file in configs/profiles/, or discard them with FORCE=1."
        )
    write_bytes(path, text.encode())
    return True


def _is_resolved(root: Path, text: str) -> bool:
    """Whether `text` is what some profile resolves to."""
    for name in names(root):
        try:
            if resolve(root, name) == text:
                return True
        except ConfigError:  # another profile's fault is no concern of the one to be written
            continue
    return False


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """Read overrides given as "dotted.name=YAML value".

    Raises:
        ConfigError: one has no "=", or what follows is no YAML.
    """
    values = {}
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set {setting[:80]}: expected KEY=VALUE, such as sweep.images=4.")
        values[name] = parse_yaml(text, f"--set {brief(setting)}")
    return values


def pointed_at(root: Path, profile: str, data: str) -> dict[str, Any]:
    """Overrides that put the folder `data` in the place of data/real in the datasets of a profile.

    Raises:
        ConfigError: there is no such profile, or it reads nothing below data/real.
    """
    check_profile(root, profile)
    path = root / "configs" / "profiles" / f"{profile}.yaml"
    blocks = read_yaml(path).get("datasets", {})
    if wrong := misfit(blocks, {str: dict}):
        raise ConfigError(f"{path}: datasets: {wrong}.")

    def moved(value: Any) -> Any:
        if isinstance(value, str) and (value == STANDIN or value.startswith(f"{STANDIN}/")):
            return data.rstrip("/") + value.removeprefix(STANDIN)
        return [moved(item) for item in value] if isinstance(value, list) else value

    changed = {name: {key: moved(value) for key, value in block.items()} for name, block in blocks.items()}
    if changed == blocks:
        raise ConfigError(
            f"Profile {profile!r} reads nothing below {STANDIN}, so --data has nothing to point elsewhere."
        )
    return {"datasets": changed}
