"""Stage train_trunk."""

from stages.command import arguments, opened, run


def main() -> None:
    """Run the stage."""
    from pipeline.experiment.train_trunk import train_trunk

    train_trunk(*opened())


if __name__ == "__main__":
    arguments(__doc__)
    run(main)
