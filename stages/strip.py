"""Stage strip: a steered walk beside its base's, from the same seeds."""

from stages.command import arguments, opened, run


def main(dataset: str) -> None:
    """Run the stage for one dataset."""
    from pipeline.experiment.strip import strip

    strip(*opened(dataset=dataset), dataset)


if __name__ == "__main__":
    given = arguments(__doc__, "dataset")
    run(lambda: main(given["dataset"]))
