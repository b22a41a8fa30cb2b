"""Stage prepare."""

from stages.command import arguments, opened, run


def main(dataset: str) -> None:
    """Run the stage for one dataset."""
    from pipeline.experiment.prepare import prepare

    prepare(*opened(dataset=dataset), dataset)


if __name__ == "__main__":
    given = arguments(__doc__, "dataset")
    run(lambda: main(given["dataset"]))
