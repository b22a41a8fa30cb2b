"""Stage masks."""

from stages.command import arguments, opened, run


def main() -> None:
    """Run the stage."""
    from pipeline.experiment.masks import write_masks

    write_masks(*opened())


if __name__ == "__main__":
    arguments(__doc__)
    run(main)
