"""Run the whole pipeline, datasets side by side: `python -m stages.repro --jobs 3`, with the result of `dvc repro`."""

from stages.command import Parser, opened, run


def main(jobs: int | None) -> None:
    """Run every stage that is not up to date."""
    from pipeline.experiment.branches import reproduce

    params, layout = opened()
    reproduce(layout.root, params.sweep.datasets, jobs)


if __name__ == "__main__":
    parser = Parser(prog="python -m stages.repro", description=__doc__)
    parser.add_argument("--jobs", type=int, help="datasets at once; 1 is `dvc repro`")
    given = parser.parse_args()
    run(lambda: main(given.jobs))
