"""Published U-Nets: where each of `UNet`'s weights lies in a checkpoint of guided-diffusion.

The layout of Dhariwal & Nichol 2021 (arXiv 2105.05233) numbers its blocks in the order of evaluation. `input_blocks.0`
is the first convolution; after it each level has `layers` residual blocks and one that halves. `output_blocks` has
`layers` + 1 residual blocks per level, the last of which also holds what doubles. In a block, slot 0 is the residual
block, slot 1 the self-attention if there is one, and the next slot what doubles. RePaint's network for CelebA-HQ
(Lugmayr et al. 2022, arXiv 2201.09865) has the same layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

from pipeline.diffusion.unet import UNet

Order = Literal["legacy", "new"]
"""How queries, keys and values of h heads lie in one matrix: "legacy" [h, 3, C / h, C], "new" [3, h, C / h, C]."""

Source = tuple[str, tuple[int, ...], Callable[[Tensor], Tensor]]
"""Name of the published tensor, the shape it must have, and how to take ours from it."""

ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_q": "qkv", "to_k": "qkv", "to_v": "qkv", "to_out.0": "proj_out"}


def sources(network: UNet, order: Order = "legacy") -> dict[str, Source]:
    """Where each entry of the network's state comes from, by its name.

    Args:
        network: decides which blocks there are; it may be on the meta device. Published networks have `patch` = 1.
        order: "legacy", unless the checkpoint was trained with guided-diffusion's flag `use_new_attention_order`.
    """
    shapes = {key: tuple(value.shape) for key, value in network.inner.state_dict().items()}
    layers, head_dim = network.inner.config.layers_per_block, network.inner.config.attention_head_dim
    return {
        f"inner.{key}": _source(key, shape, _published(key, shapes, layers), head_dim, order)
        for key, shape in shapes.items()
    }


def _published(key: str, shapes: Mapping[str, object], layers: int) -> str:
    """The published name of one of our tensors; `shapes` holds the names of all."""
    path, _, kind = key.rpartition(".")
    if path in ENDS:
        return f"{ENDS[path]}.{kind}"
    way, level, part, index, *rest = path.replace("mid_block", "mid_block.0", 1).split(".")
    inner = (ATTENTION if part == "attentions" else RESIDUAL)[".".join(rest)]
    if way == "mid_block":
        return f"middle_block.{1 if part == 'attentions' else 2 * int(index)}.{inner}.{kind}"
    number = int(level) * (layers + 1) + (layers if part.endswith("samplers") else int(index))
    if way == "down_blocks":
        return f"input_blocks.{number + 1}.{int(part == 'attentions')}.{inner}.{kind}"
    attends = f"up_blocks.{level}.attentions.0.to_q.weight" in shapes
    slot = {"resnets": 0, "attentions": 1, "upsamplers": 1 + attends}[part]
    return f"output_blocks.{number}.{slot}.{inner}.{kind}"


def _source(key: str, shape: tuple[int, ...], published: str, head_dim: int, order: Order) -> Source:
    """Their attention is a convolution over positions, queries, keys and values in one matrix; the rest is as ours."""
    kernel = (1,) if ".attentions." in key and len(shape) == 2 else ()
    if ".to_q." not in key and ".to_k." not in key and ".to_v." not in key:
        return published, shape + kernel, lambda tensor: tensor.reshape(shape)
    which, heads = "qkv".index(key.split(".to_")[1][0]), shape[0] // head_dim

    def share(tensor: Tensor) -> Tensor:
        split: Tensor = tensor.unflatten(0, (heads, 3, -1) if order == "legacy" else (3, heads, -1))
        return split.select(1 if order == "legacy" else 0, which).reshape(shape)

    return published, (3 * shape[0], *shape[1:], *kernel), share


def describe(key: str, network: UNet) -> str:
    """Say what a published tensor belongs to, as far as its name tells; sides are those of `network`."""
    head, *rest = key.split(".")
    if head == "label_emb":
        return "the class embedding of a class-conditional network; the pipeline's are unconditional"
    if head == "time_embed":
        return "the time embedding"
    if head == "out" or key.startswith("input_blocks.0."):
        return "the last layers" if head == "out" else "the first convolution"
    if head == "middle_block":
        return f"{_part(rest)} in the middle"
    if head not in ("input_blocks", "output_blocks") or not rest or not rest[0].isdigit():
        return "no part of a guided-diffusion U-Net"
    config, number = network.inner.config, int(rest[0])
    levels, blocks = len(config.block_out_channels), config.layers_per_block + 1
    level = (number - 1) // blocks if head == "input_blocks" else levels - 1 - number // blocks
    side, way = config.sample_size >> max(level, 0), "down" if head == "input_blocks" else "up"
    where = f"at {side}x{side}" if 0 <= level < levels else "beyond the last level"
    return f"{_part(rest)} in block {number} on the way {way}, {where} of params.yaml"


def _part(rest: list[str]) -> str:
    if "op" in rest or rest[2:3] == ["conv"]:
        return "a plain change of resolution (guided-diffusion's flag resblock_updown off)"
    return "self-attention" if {"qkv", "proj_out", "norm"} & set(rest) else "a residual block"
