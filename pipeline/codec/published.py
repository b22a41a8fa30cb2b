"""Published VQ-GANs: where each of `VQGAN`'s weights lies in a checkpoint of taming-transformers or latent diffusion.

The layout of Esser et al. 2021 (arXiv 2012.09841), kept by Rombach et al. 2022 (arXiv 2112.10752), numbers the levels
by resolution, finest first, in the encoder and in the decoder alike, so the decoder starts with its highest number.
Self-attention is made of 1x1 convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from pipeline.codec.vqgan import VQGAN

Source = tuple[str, tuple[int, ...], Callable[[Tensor], Tensor]]
"""The published tensor, the shape it must have, and how to take ours from it."""

FIRST_STAGE = "first_stage_model."
"""Where checkpoints of transformers and latent diffusion models keep their VQ-GAN."""

LOSS = "loss."
"""The discriminator and the perceptual network of the training, which are no part of the VQ-GAN."""

ENDS = {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}
INNER = {
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
PLACES = {
    "quantize.embed.": "a Gumbel quantiser; the pipeline's takes the nearest code",
    "quantize.proj.": "a Gumbel quantiser; the pipeline's takes the nearest code",
    "quantize.": "the codebook",
    "quant_conv.": "the 1x1 convolution between encoder and codes",
    "post_quant_conv.": "the 1x1 convolution between codes and decoder",
    "model_ema.": "running averages of the weights; keep one set of weights in the file",
}
LEVEL = {"resnets": "block", "attentions": "attn", "downsamplers": "downsample", "upsamplers": "upsample"}
MIDDLE = {"resnets.0": "block_1", "attentions.0": "attn_1", "resnets.1": "block_2"}


def own_part(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The VQ-GAN in a checkpoint: the first stage if there is one, without what belongs to the training's loss."""
    if any(key.startswith(FIRST_STAGE) for key in tensors):
        tensors = {key.removeprefix(FIRST_STAGE): tensors[key] for key in tensors if key.startswith(FIRST_STAGE)}
    return {key: value for key, value in tensors.items() if not key.startswith(LOSS)}


def sources(network: VQGAN) -> dict[str, Source]:
    """Where each entry of the network's state comes from, by its name; the network may be on the meta device."""
    levels = len(network.inner.config.block_out_channels)
    return {key: _source(key, tuple(value.shape), levels) for key, value in network.state_dict().items()}


def _source(key: str, shape: tuple[int, ...], levels: int) -> Source:
    kernel = (1, 1) if ".attentions." in key and len(shape) == 2 else ()
    return _published(key.removeprefix("inner."), levels), shape + kernel, lambda tensor: tensor.reshape(shape)


def _published(key: str, levels: int) -> str:
    """The published name of one of our tensors."""
    half, _, rest = key.partition(".")
    if half not in ("encoder", "decoder"):
        return key
    path, _, kind = rest.rpartition(".")
    if path in ENDS:
        return f"{half}.{ENDS[path]}.{kind}"
    way, level, part, index, *last = path.replace("mid_block", "mid_block.0", 1).split(".")
    inner = INNER.get(".".join(last), ".".join(last))
    if way == "mid_block":
        return f"{half}.mid.{MIDDLE[f'{part}.{index}']}.{inner}.{kind}"
    place = f"down.{level}" if half == "encoder" else f"up.{levels - 1 - int(level)}"
    step = LEVEL[part] if part.endswith("samplers") else f"{LEVEL[part]}.{index}"
    return f"{half}.{place}.{step}.{inner}.{kind}"


def describe(key: str, network: VQGAN) -> str:
    """Say what a published tensor belongs to, as far as its name tells; sides are those of `network`."""
    for prefix, meaning in PLACES.items():
        if key.startswith(prefix):
            return meaning
    half, way, level, *rest = [*key.split("."), "", ""]
    if half not in ("encoder", "decoder"):
        return "no part of a taming-transformers VQ-GAN"
    if way in ("conv_in", "norm_out", "conv_out"):
        return f"the first or last layers of the {half}"
    part = "a change of resolution" if "downsample" in rest or "upsample" in rest else "a residual block"
    if way == "mid":
        return f"{'self-attention' if level.startswith('attn') else part} in the middle of the {half}"
    if way not in ("down", "up") or not level.isdigit():
        return "no part of a taming-transformers VQ-GAN"
    coarsest = len(network.inner.config.block_out_channels) - 1
    side = 16 << max(coarsest - int(level), 0)
    where = f"at {side}x{side}" if int(level) <= coarsest else "beyond the last level"
    return f"{'self-attention' if 'attn' in rest else part} on level {level} of the {half}, {where} of params.yaml"
