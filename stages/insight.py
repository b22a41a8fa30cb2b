"""Stage insight: what only a tractable prior can answer about masked test images, as pictures and numbers."""

from stages.command import Parser, opened, run


def main(dataset: str, mask: str | None) -> None:
    """Run the stage for one dataset, under one mask or the first of the sweep."""
    from pipeline.experiment.insight import insight

    insight(*opened(dataset=dataset), dataset, mask)


if __name__ == "__main__":
    parser = Parser(prog="python -m stages.insight", description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--mask", help="of the sweep or mask_files; without it, the first of sweep.masks")
    given = parser.parse_args()
    run(lambda: main(given.dataset, given.mask))
