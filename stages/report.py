"""Stage report."""

from stages.command import arguments, opened, run


def main() -> None:
    """Run the stage."""
    from pipeline.experiment.make_report import make_report

    make_report(*opened())


if __name__ == "__main__":
    arguments(__doc__)
    run(main)
