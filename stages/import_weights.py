"""Convert a published checkpoint: `python -m stages.import_weights --kind unet --checkpoint FILE --out FOLDER`.

The folder can then be named by `ddpm.init` (--kind unet) or `vqgan.init` (--kind vqgan) of params.yaml;
docs/checkpoints.md says which files fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.command import Parser, run

if TYPE_CHECKING:
    from pipeline.diffusion.published import Order
    from pipeline.experiment.import_weights import Kind


def main(kind: Kind, checkpoint: str, out: str, order: Order, profile: str | None) -> None:
    """Convert for the network of params.yaml, or of a profile."""
    from pathlib import Path

    from pipeline.experiment.import_weights import import_weights
    from pipeline.experiment.layout import find_root
    from pipeline.experiment.params import check_params, load_params
    from pipeline.experiment.profiles import resolved

    params = check_params(resolved(find_root(), profile)) if profile else load_params(find_root() / "params.yaml")
    import_weights(kind, Path(checkpoint), Path(out), params, order)


if __name__ == "__main__":
    parser = Parser(prog="python -m stages.import_weights", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kind", required=True, choices=["unet", "vqgan"], help="what the checkpoint holds")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help=".safetensors, .pt or .ckpt")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="receives model.safetensors and model.json")
    parser.add_argument("--profile", metavar="NAME", help="take the network's shape from this profile, not params.yaml")
    parser.add_argument(
        "--attention-order",
        choices=["legacy", "new"],
        default="legacy",
        help="of queries, keys and values in a U-Net; new: trained with guided-diffusion's use_new_attention_order",
    )
    given = parser.parse_args()
    run(lambda: main(given.kind, given.checkpoint, given.out, given.attention_order, given.profile))
