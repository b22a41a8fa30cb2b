"""Inpaint pictures of one's own with trained models: `python -m stages.inpaint_files photo.png mask.png`."""

import argparse
from pathlib import Path

from stages.command import Parser, opened, run

GIVEN = """\
IMAGE is a PNG, JPEG, WebP or BMP, or a folder of them; models see its centre square, reduced to image_size.
MASK is left (the left half is known), top, expand1, expand2, v_strip, h_strip or wide; or a PNG of the size of IMAGE or
of image_size, black and white, white = known; or a folder with such a PNG for each picture, of the same name."""


def main(given: argparse.Namespace) -> None:
    """Inpaint files."""
    from pipeline.experiment.inpaint_files import Order, inpaint_files

    params, layout = opened()
    order = Order(
        dataset=params.sweep.datasets[0] if given.dataset is None else given.dataset,
        method=given.method,
        samples=given.samples,
        seed=params.seed if given.seed is None else given.seed,
        white=given.white,
        large=given.large,
    )
    inpaint_files(params, layout, given.files, order, given.out, replace=given.replace)


if __name__ == "__main__":
    parser = Parser(
        prog="python -m stages.inpaint_files",
        description=__doc__,
        epilog=GIVEN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="IMAGE MASK", help="pictures and masks in turns")
    parser.add_argument("--method", default="tiramisu", help="a method or a steered row of params.yaml (tiramisu)")
    parser.add_argument("--samples", type=int, default=4, help="completions per picture (4)")
    parser.add_argument("--dataset", help="whose models are used (the first of sweep.datasets)")
    parser.add_argument(
        "--white", choices=("known", "hidden"), default="known", help="what white means in PNGs (known)"
    )
    parser.add_argument("--large", action="store_true", help="samples also at the size of the picture's centre square")
    parser.add_argument("--seed", type=int, help="another than that of params.yaml")
    parser.add_argument("--out", type=Path, default=Path("inpainted"), help="folder for the results (inpainted)")
    parser.add_argument("--replace", action="store_true", help="replace the results of an earlier call in that folder")
    given = parser.parse_args()
    run(lambda: main(given))
