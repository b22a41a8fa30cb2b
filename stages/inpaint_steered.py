"""Stage inpaint_steered."""

from stages.command import arguments, opened, run


def main(dataset: str, steered: str) -> None:
    """Run the stage for one dataset and steered row, all masks."""
    from pipeline.experiment.inpaint_steered import inpaint_steered

    inpaint_steered(*opened(dataset=dataset, steered=steered), dataset, steered)


if __name__ == "__main__":
    given = arguments(__doc__, "dataset", "steered")
    run(lambda: main(given["dataset"], given["steered"]))
