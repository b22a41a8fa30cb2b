"""Stage inpaint."""

from stages.command import arguments, opened, run


def main(dataset: str, method: str) -> None:
    """Run the stage for one dataset and method, all masks."""
    from pipeline.experiment.inpaint import inpaint

    inpaint(*opened(dataset=dataset, method=method), dataset, method)


if __name__ == "__main__":
    given = arguments(__doc__, "dataset", "method")
    run(lambda: main(given["dataset"], given["method"]))
