"""Dry run: what every method and steered row of params.yaml would take, without sampling anything."""

import sys

from stages.command import arguments, opened, run


def main() -> None:
    """Time the network, and print the plan."""
    from pipeline.experiment.plan import plan

    sys.stdout.write(plan(*opened()))


if __name__ == "__main__":
    arguments(__doc__)
    run(main)
