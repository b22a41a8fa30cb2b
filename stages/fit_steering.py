"""Stage fit_steering."""

from stages.command import arguments, opened, run


def main(dataset: str) -> None:
    """Run the stage for one dataset."""
    from pipeline.experiment.fit_steering import fit_steering

    fit_steering(*opened(dataset=dataset), dataset)


if __name__ == "__main__":
    given = arguments(__doc__, "dataset")
    run(lambda: main(given["dataset"]))
