"""Which trunk LPIPS uses: ImageNet's AlexNet where it can be had, else the pipeline's own, under another name.

LPIPS (Zhang et al., 2018, arXiv 1801.03924) needs the convolutions of an AlexNet trained on ImageNet. They are looked
for in this order:

1. a file named in params.yaml; if it cannot be used, that is an error, never a reason to take another;
2. torch's cache, `$TORCH_HOME/hub/checkpoints`, where torchvision would look, too; but torchvision takes any file with
   the right name, and here its hash must be the one in the name;
3. a download into that cache, if params.yaml and the environment (`TIRAMISU_OFFLINE=1` forbids it) allow it;
4. none of these: the column is called `lpips_domain` and is computed on the pipeline's own trunk. The two are different
   metrics and never stand in one table; the record says which it is and why.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import save
from torch import Tensor

from pipeline.codec.trunk import WEIGHTS, load_trunk
from pipeline.errors import CheckpointError, Form, misfit, reason
from pipeline.experiment.perception import DomainLpips, Lpips, Perception
from pipeline.experiment.record import write_bytes, write_json
from pipeline.weights import check_numbers, read_published

log = logging.getLogger(__name__)

ORIGIN = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"  # torchvision's AlexNet_Weights.IMAGENET1K_V1
TIMEOUT = 20.0  # seconds without an answer after which there is no network
OFFLINE = "TIRAMISU_OFFLINE"

RECORD, FEATURES = "lpips.json", "alexnet_features.safetensors"
SHAPES: dict[str, tuple[int, ...]] = {
    "features.0.weight": (64, 3, 11, 11),
    "features.0.bias": (64,),
    "features.3.weight": (192, 64, 5, 5),
    "features.3.bias": (192,),
    "features.6.weight": (384, 192, 3, 3),
    "features.6.bias": (384,),
    "features.8.weight": (256, 384, 3, 3),
    "features.8.bias": (256,),
    "features.10.weight": (256, 256, 3, 3),
    "features.10.bias": (256,),
}
IMAGENET_FEATURES = "2b566cc3a4d6f0a7343701af22f461f1ac3dcd03a3ac28cce10968a1d3c85fdc"
"""`features_digest` of weights that reproduce the published LPIPS values of version 0.1 (0.722 and 0.138 for the
example pictures `ex_p0` and `ex_p1` of the LPIPS repository)."""

Source = Literal["params", "cache", "download", "own"]
Found = tuple[dict[str, Tensor] | None, Source, str]

_ON_THE_OWN_TRUNK = (
    "Distances are taken on the pipeline's own trunk and called lpips_domain; they rank completions, but are not LPIPS "
    "and cannot be compared with published values."
)


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """What lpips.json says.

    Attributes:
        column: "lpips" or "lpips_domain", the name under which the scores stand.
        source: where the ImageNet trunk was found.
        trunk_sha256: `features_digest` of the ImageNet trunk; None for the domain's, whose hash is in its own record.
        verified: whether these are the weights that everyone else's LPIPS uses; None for the domain's trunk.
        reason: one sentence for the report.
    """

    column: Literal["lpips", "lpips_domain"]
    source: Source
    trunk_sha256: str | None
    verified: bool | None
    reason: str


FORM: dict[str, Form] = {
    "column": str,
    "source": str,
    "trunk_sha256": str | None,
    "verified": bool | None,
    "reason": str,
}
"""The fields of a `Resolution` as they stand in lpips.json."""


@dataclass(frozen=True, kw_only=True)
class LoadedLpips:
    """The metric, ready to use, and what its scores have to say about it."""

    column: str
    trunk_sha256: str
    verified: bool | None
    reason: str
    perception: Perception


def resolve(path: Path | None, allow_download: bool, folder: Path) -> Resolution:
    """Find the trunk and write what was found: lpips.json, and alexnet_features.safetensors where it is AlexNet.

    Args:
        path: AlexNet weights as params.yaml names them, .safetensors or .pth with torchvision's keys; None to search.
        allow_download: whether to ask the network.
        folder: to write to; made if absent.

    Returns:
        What lpips.json says.

    Raises:
        CheckpointError: the file at `path`, or the one in torch's cache, is not what it should be.
    """
    features, source, reason = _find(path, allow_download)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FEATURES).unlink(missing_ok=True)
    if features is None:
        reason = f"{reason} {_ON_THE_OWN_TRUNK}"
        resolution = Resolution(column="lpips_domain", source=source, trunk_sha256=None, verified=None, reason=reason)
        log.warning("%s", reason)
    else:
        write_bytes(folder / FEATURES, save(features))
        digest = features_digest(features)
        verified = source != "params" or digest == IMAGENET_FEATURES  # the hash of the others has been checked
        doubt = "" if verified else " They are not the weights of published LPIPS values: do not compare with those."
        reason += doubt
        resolution = Resolution(column="lpips", source=source, trunk_sha256=digest, verified=verified, reason=reason)
    write_json(folder / RECORD, {"schema": 1, "kind": "lpips", **asdict(resolution)})
    return resolution


def load_lpips(folder: Path, trunk_folder: Path, device: torch.device | str = "cpu") -> LoadedLpips:
    """Build the metric that `resolve` chose.

    Args:
        folder: what `resolve` wrote.
        trunk_folder: the pipeline's own trunk, needed for `lpips_domain` only.
        device: where to compute.

    Raises:
        CheckpointError: a file is missing, damaged or not the one that was resolved.
    """
    resolution = read_resolution(folder)
    if resolution.column == "lpips_domain":
        perception: Perception = DomainLpips(load_trunk(trunk_folder).to(device))
        digest = hashlib.sha256((trunk_folder / WEIGHTS).read_bytes()).hexdigest()
    else:
        features = read_features(folder / FEATURES)
        digest = features_digest(features)
        if digest != resolution.trunk_sha256:
            raise CheckpointError(
                f"{folder / FEATURES}: expected weights with digest {resolution.trunk_sha256}, as {RECORD} beside it "
                f"says, got {digest}; resolve the LPIPS trunk again."
            )
        perception = Lpips(features, device)
    return LoadedLpips(
        column=resolution.column,
        trunk_sha256=digest,
        verified=resolution.verified,
        reason=resolution.reason,
        perception=perception,
    )


def read_resolution(folder: Path) -> Resolution:
    """Read lpips.json.

    Raises:
        CheckpointError: it is missing or something else.
    """
    path = folder / RECORD
    if not path.is_file():
        raise CheckpointError(f"{path}: expected the record of the LPIPS trunk, found none; resolve the trunk first.")
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: expected the record of the LPIPS trunk, but {reason(error)}; resolve the trunk again."
        ) from error
    wrong = misfit(record, FORM)
    for key, words in (("column", ("lpips", "lpips_domain")), ("source", get_args(Source))):
        if not wrong and record[key] not in words:
            wrong = f"{key} should be one of {', '.join(words)}, but is {record[key]!r}"
    if wrong:
        raise CheckpointError(f"{path}: expected the record of the LPIPS trunk, but {wrong}; resolve the trunk again.")
    return Resolution(**{key: record[key] for key in FORM})


def read_features(path: Path) -> dict[str, Tensor]:
    """AlexNet's convolutions from a file with torchvision's keys; a classifier in it is left out.

    Args:
        path: .safetensors, or what torch.save wrote (.pth, .pt), of which nothing but tensors is loaded.

    Returns:
        The tensors of `SHAPES`, float32, in that order.

    Raises:
        CheckpointError: there is no such file, it cannot be read, or names or shapes are not AlexNet's.
    """
    tensors = read_published(path)
    for key, shape in SHAPES.items():
        found = tensors.get(key)
        if not isinstance(found, Tensor) or found.shape != shape:
            came = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else "none"
            raise CheckpointError(
                f"{path}: expected torchvision's AlexNet with {key} of shape {shape}, got {came} among {len(tensors)} "
                "tensors; give AlexNet's weights, whole or its features only."
            )
        check_numbers(key, found, True, str(path))
    return {key: tensors[key].float().contiguous() for key in SHAPES}


def features_digest(features: Mapping[str, Tensor]) -> str:
    """sha256 of the numbers themselves, float32 in the order of `SHAPES`: the same whatever file they came from."""
    digest = hashlib.sha256()
    for key in SHAPES:
        digest.update(features[key].numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _find(path: Path | None, allow_download: bool) -> Found:
    """AlexNet's features or None, where they are from, and that in a sentence."""
    if path is not None:
        return read_features(path), "params", f"LPIPS on AlexNet, weights from {path.name} as params.yaml says."
    cached = _cache() / Path(ORIGIN).name
    if cached.is_file():
        _check_hash(cached)
        return read_features(cached), "cache", f"LPIPS on AlexNet, weights {cached.name} from torch's cache."
    missing = f"No ImageNet-trained AlexNet: params.yaml names no file, {cached.name} is not in torch's cache, and"
    if not allow_download or os.environ.get(OFFLINE, "0") not in ("", "0"):
        return None, "own", f"{missing} {OFFLINE if allow_download else 'params.yaml'} forbids the download."
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with _patience(TIMEOUT):
            torch.hub.download_url_to_file(ORIGIN, str(cached), _promised_hash(cached), progress=False)
    except (OSError, HTTPException, RuntimeError) as error:  # no network, no answer in time, something else answers
        return None, "own", f"{missing} the download from {ORIGIN} failed ({error})."
    return read_features(cached), "download", f"LPIPS on AlexNet, weights downloaded from {ORIGIN}."


def _cache() -> Path:
    """Where torchvision looks for weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _promised_hash(file: Path) -> str:
    """The beginning of the sha256 in a file's name, `<name>-<8 digits>.pth`."""
    return file.stem.rpartition("-")[2]


def _check_hash(file: Path) -> None:
    """Hold a file to its name."""
    expected = _promised_hash(file)
    with file.open("rb") as content:
        actual = hashlib.file_digest(content, "sha256").hexdigest()
    if not actual.startswith(expected):
        raise CheckpointError(
            f"{file}: expected a sha256 that begins with {expected}, got {actual}, so this is not torchvision's file; "
            "delete it, or, if you trust it, name it in params.yaml as lpips.path."
        )


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Let no connection wait longer than this for an answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
