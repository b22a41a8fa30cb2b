"""Sheets of the stage insight: pictures and maps side by side, every pixel enlarged to a whole square."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from pipeline.circuit.queries import BITS
from pipeline.codec.codec import Codec
from pipeline.data.images import to_uint8
from pipeline.experiment.sheet import COLORS, HIDDEN, STYLE, Pixels, Sheet

if TYPE_CHECKING:
    from pipeline.experiment.insight import Insight

MARK = "#ff2d2d"


def draw_entropy(path: Path, codec: Codec, found: Sequence[Insight]) -> None:
    """Truth, what is seen, how uncertain each token is, and the most probable completion; a row per image and mask."""
    with rc_context(STYLE):
        headings = ["truth", "seen", "entropy of each\nhidden token", "most probable\ncompletion"]
        sheet = Sheet(names(found), headings, side_of(codec, found), scales=True)
        norm = from_zero(each.entropy for each in found)
        for row, each in enumerate(found):
            truth, most = decoded(codec, torch.stack([each.truth, each.most.tokens[0]]))
            seen = hide(truth, each.known)
            sheet.show(row, 0, truth)
            sheet.show(row, 1, seen, share(each.known))
            mean = float(each.entropy[~each.known].mean())
            sheet.show(row, 2, lay_over(seen, each.known, each.entropy, norm), f"mean {mean:.2f} bits")
            sheet.show(row, 3, most)
        sheet.scale(2, norm, "bits")
        sheet.save(path)


def draw_completions(path: Path, codec: Codec, found: Sequence[Insight]) -> None:
    """Truth, what is seen, the most probable completion, and diverse draws, likeliest first, with their log2 p."""
    with rc_context(STYLE):
        shown = max(len(each.shown) for each in found)
        draws = ["the likeliest\ndraw", *["a draw far\nfrom the others"] * (shown - 1)]
        headings = ["truth", "seen", "most probable\ncompletion", *draws]
        sheet = Sheet(names(found), headings, side_of(codec, found))
        for row, each in enumerate(found):
            truth, *others = decoded(codec, torch.cat([each.truth[None], each.most.tokens, each.shown.tokens]))
            sheet.show(row, 0, truth, log2(each.log_truth))
            sheet.show(row, 1, hide(truth, each.known), share(each.known))
            logs = [float(each.most.log_prob[0]), *each.shown.log_prob.tolist()]
            for column, (picture, value) in enumerate(zip(others, logs, strict=True)):
                sheet.show(row, 2 + column, picture, log2(value))
        sheet.save(path)


def draw_gain(path: Path, codec: Codec, found: Sequence[Insight]) -> None:
    """What is seen, and what revealing a token or a patch would tell about all others; the best patch is outlined."""
    with rc_context(STYLE):
        headings = [
            "seen, and best patch\nto reveal next",
            "what one token\ntells of the others",
            "what one patch\ntells of the others",
        ]
        sheet = Sheet(names(found), headings, side_of(codec, found), scales=True)
        patches = [by_token(each) for each in found]
        tokens = from_zero(each.gain for each in found)
        blocks = from_zero(patches)
        for row, (each, values) in enumerate(zip(found, patches, strict=True)):
            [truth] = decoded(codec, each.truth[None])
            seen, best = hide(truth, each.known), each.best
            place, bits, error = each.patches[best], each.told.others[0, best], each.told.error[0, best]
            outline(sheet.show(row, 0, seen, share(each.known)), place, codec.side, len(seen))
            under = f"at most {float(each.gain.max()):.1f} bits"
            sheet.show(row, 1, lay_over(seen, each.known, each.gain, tokens), under)
            under = f"best: {float(bits):.1f} ± {float(error):.1f} bits"
            outline(sheet.show(row, 2, lay_over(seen, each.known, values, blocks), under), place, codec.side, len(seen))
        sheet.scale(1, tokens, "bits")
        sheet.scale(2, blocks, "bits")
        sheet.save(path)


def from_zero(maps: Iterable[Tensor]) -> Normalize:
    """A scale from 0 to the largest value of all maps, or to 1 if all are 0."""
    return Normalize(0.0, max(float(values.max()) for values in maps) or 1.0)


def names(found: Sequence[Insight]) -> list[str]:
    """Names of the rows: mask, and number of the image among those shown."""
    order = list(dict.fromkeys(each.image for each in found))
    return [f"{each.mask}\nimage {order.index(each.image) + 1}" for each in found]


def share(known: Tensor) -> str:
    """How many tokens are seen, as the line under a picture; a token is if all its pixels are."""
    return f"{int(known.sum())} of {len(known)} tokens"


def log2(log_prob: float) -> str:
    """A natural logarithm as the line under a picture."""
    return f"log₂ p = {log_prob / BITS:,.0f}".replace("-", "−")


def decoded(codec: Codec, tokens: Tensor) -> list[Pixels]:
    """Pictures uint8 [S, S, 3] of tokens [K, N]."""
    with torch.no_grad():
        return list(to_uint8(codec.decode(tokens).cpu()).numpy())


def side_of(codec: Codec, found: Sequence[Insight]) -> int:
    """Side of a decoded picture."""
    return len(decoded(codec, found[0].truth[None])[0])


def hide(picture: Pixels, known: Tensor) -> Pixels:
    """Grey out the pixels of tokens that are not `known` [N]."""
    return np.where(enlarged(known.cpu().numpy(), len(picture))[..., None], picture, np.uint8(HIDDEN))


def lay_over(picture: Pixels, known: Tensor, values: Tensor, norm: Normalize) -> Pixels:
    """Lay the colours of values [N] over the hidden part of a picture."""
    colors = ScalarMappable(norm, COLORS).to_rgba(values.double().cpu().numpy(), bytes=True)[:, :3]
    seen = enlarged(known.cpu().numpy(), len(picture))[..., None]
    return np.where(seen, picture, enlarged(colors, len(picture)))


def enlarged(values: NDArray[Any], size: int) -> NDArray[Any]:
    """Values [N, ...] of tokens as pixels [size, size, ...]."""
    side = round(len(values) ** 0.5)
    return values.reshape(side, side, *values.shape[1:]).repeat(size // side, 0).repeat(size // side, 1)


def by_token(found: Insight) -> Tensor:
    """What each token's patch would tell, [N]; 0 in patches that are known."""
    values = torch.zeros(len(found.known), dtype=torch.float64)
    for tokens, bits in zip(found.patches, found.told.others[0].tolist(), strict=True):
        values[tokens] = bits
    return values


def outline(axes: Axes, tokens: Sequence[int], side: int, size: int) -> None:
    """Draw a frame around a block of tokens."""
    rows, columns = [token // side for token in tokens], [token % side for token in tokens]
    patch, width, height = size / side, max(columns) - min(columns) + 1, max(rows) - min(rows) + 1
    corner = (min(columns) * patch, min(rows) * patch)
    for color, line in (("white", 4.0), (MARK, 2.0)):
        frame = Rectangle(corner, width * patch, height * patch, fill=False, edgecolor=color, linewidth=line)
        axes.add_patch(frame).set_clip_on(False)
