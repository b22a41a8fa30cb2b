"""Stage encode."""

from stages.command import arguments, opened, run


def main(dataset: str) -> None:
    """Run the stage for one dataset."""
    from pipeline.experiment.encode import encode

    encode(*opened(dataset=dataset), dataset)


if __name__ == "__main__":
    given = arguments(__doc__, "dataset")
    run(lambda: main(given["dataset"]))
