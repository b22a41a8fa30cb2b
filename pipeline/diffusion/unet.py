"""The U-Net: diffusers' `UNet2DModel`, configured to hold guided-diffusion's weights exactly.

It stands behind a space-to-depth front. With `patch` = 1 it is the network of Dhariwal & Nichol 2021 (arXiv
2105.05233). With `patch` = p every p x p block of pixels becomes one position of 3 p^2 channels, which makes a step
several times cheaper on small machines (Hoogeboom et al. 2023, arXiv 2301.11093).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class UNetParams:
    """Shape of the U-Net.

    Attributes:
        patch: side of the blocks of pixels folded into channels.
        channels: width of each level; each level but the last halves the resolution.
        layers: residual blocks per level.
        attention: resolutions (after folding) at which there is self-attention.
        head_dim: channels per attention head.
        dropout: dropout in the residual blocks while training.
        learn_variance: predict the variance fraction beside the target (Nichol & Dhariwal 2021).
    """

    patch: int = 1
    channels: tuple[int, ...] = (128, 256, 256)
    layers: int = 2
    attention: tuple[int, ...] = (16, 8)
    head_dim: int = 64
    dropout: float = 0.0
    learn_variance: bool = True


class UNet(nn.Module):
    """Maps (x_t [B, 3, S, S], time index [B]) to [B, 3 or 6, S, S].

    The channels are the target and, if learned, the raw variance fraction.
    """

    def __init__(self, params: UNetParams, image_size: int) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        side, channels = image_size // params.patch, 3 * params.patch**2
        resolutions = [side >> level for level in range(len(params.channels))]
        attend = [resolution in params.attention for resolution in resolutions]
        self.patch = params.patch
        self.inner = UNet2DModel(
            sample_size=side,
            in_channels=channels,
            out_channels=channels * (2 if params.learn_variance else 1),
            block_out_channels=tuple(params.channels),
            layers_per_block=params.layers,
            down_block_types=tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attend),
            up_block_types=tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attend)),
            downsample_type="resnet",
            upsample_type="resnet",
            resnet_time_scale_shift="scale_shift",
            attention_head_dim=params.head_dim,
            # without it the middle attention loses its GroupNorm and published weights do not fit
            attn_norm_num_groups=32,
            dropout=params.dropout,
            norm_eps=1e-5,
            flip_sin_to_cos=True,
            freq_shift=0,
        )

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        """Predict; each half of the output is unfolded to image shape on its own."""
        folded = F.pixel_unshuffle(x_t, self.patch)
        out: Tensor = self.inner(folded, time, return_dict=False)[0]
        return F.pixel_shuffle(out, self.patch)
