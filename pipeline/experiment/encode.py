"""The stage encode: images of one dataset -> token grids."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.codec.codec import Codec
from pipeline.codec.vqgan import usage
from pipeline.data.images import SPLITS, to_float
from pipeline.data.shards import read_split
from pipeline.experiment import runtime
from pipeline.experiment.codecs import load_codec
from pipeline.experiment.layout import Layout
from pipeline.experiment.params import Params
from pipeline.experiment.progress import Bar, progress
from pipeline.experiment.record import write_bytes, write_json

BATCH = 128


def encode(params: Params, layout: Layout, dataset: str) -> None:
    """Write tokens uint16 [N, 16, 16] and keys of every split as `<split>.npz`, and a summary as `tokens.json`.

    If circuits learn from mirrored images too, `mirrored.npz` has the training images' mirror images: the tokens of a
    mirrored image are not the mirrored tokens.
    """
    runtime.make_deterministic()
    device, out = runtime.choose_device(), layout.tokens(dataset)
    codec, description = load_codec(layout.vqgan(dataset), params.vqgan, device)
    summary: dict[str, object] = {"schema": 1, "dataset": dataset, "vqgan": description["sha256"], "codes": codec.codes}
    sets = {str(split): read_split(layout.data(dataset), split, layout.cache) for split in SPLITS}
    if params.circuit.mirror:
        sets["mirrored"] = replace(sets["train"], images=sets["train"].images[:, :, ::-1])
    for name, images in sets.items():
        with progress(f"encode {dataset} {name}", len(images.images), "images") as bar:
            tokens = encode_images(codec, images.images, device, bar)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, tokens=tokens, keys=np.array(images.keys))
        write_bytes(out / f"{name}.npz", buffer.getvalue())
        share, perplexity = usage(torch.from_numpy(tokens.astype(np.int64)), codec.codes)
        summary[name] = {"images": len(tokens), "usage": share, "perplexity": perplexity}
    write_json(out / "tokens.json", summary)


@torch.inference_mode()
def encode_images(codec: Codec, images: NDArray[np.uint8], device: torch.device, bar: Bar) -> NDArray[np.uint16]:
    """Tokens uint16 [N, 16, 16] of images uint8 [N, S, S, 3]."""
    rows = []
    for start in range(0, len(images), BATCH):
        batch = np.ascontiguousarray(images[start : start + BATCH])
        rows.append(codec.encode(to_float(batch).to(device)).cpu().numpy().astype(np.uint16))
        bar.advance(len(batch))
    return np.concatenate(rows).reshape(-1, codec.side, codec.side)
