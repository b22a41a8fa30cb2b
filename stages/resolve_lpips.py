"""Stage resolve_lpips."""

from stages.command import arguments, opened, run


def main() -> None:
    """Run the stage."""
    from pipeline.experiment.resolve_lpips import resolve_lpips

    resolve_lpips(*opened())


if __name__ == "__main__":
    arguments(__doc__)
    run(main)
