"""Bring regions of several references together in new images: `python -m stages.fuse --dataset faces`."""

import argparse
from pathlib import Path

from stages.command import Parser, opened, run


def main(given: argparse.Namespace) -> None:
    """Fuse test images of a dataset, or pictures of one's own."""
    from pipeline.experiment.fuse import LEVELS, fuse

    fuse(
        *opened(dataset=given.dataset),
        given.dataset,
        own=given.reference,
        pairs=given.pair,
        levels=given.coherence or LEVELS,
        samples=given.samples,
        out=given.out,
    )


if __name__ == "__main__":
    parser = Parser(prog="python -m stages.fuse", description=__doc__)
    parser.add_argument("--dataset", required=True, help="whose models are used")
    parser.add_argument(
        "--reference",
        nargs=2,
        action="append",
        default=[],
        metavar=("IMAGE", "REGION"),
        help="a picture and the PNG of its region, white = inside; or left, right, top, bottom; give at least two",
    )
    parser.add_argument(
        "--pair",
        nargs=2,
        action="append",
        default=[],
        metavar=("LEFT", "RIGHT"),
        help="two test images, by number or key: the left half of one and the right half of the other",
    )
    parser.add_argument("--coherence", nargs="+", type=float, metavar="LEVEL", help="from 0 to 1")
    parser.add_argument("--samples", type=int, default=1, help="images drawn per group and level")
    parser.add_argument("--out", type=Path, help="folder for fusion.png and fusion.json")
    given = parser.parse_args()
    run(lambda: main(given))
