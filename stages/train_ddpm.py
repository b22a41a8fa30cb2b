"""Stage train_ddpm."""

from stages.command import arguments, opened, run


def main(dataset: str) -> None:
    """Run the stage for one dataset."""
    from pipeline.experiment.train_ddpm import train_ddpm

    train_ddpm(*opened(dataset=dataset), dataset)


if __name__ == "__main__":
    given = arguments(__doc__, "dataset")
    run(lambda: main(given["dataset"]))
