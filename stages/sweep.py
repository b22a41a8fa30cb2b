"""Compute every cell of the sweep that is missing, wherever cells run; `dvc repro` then only assembles them."""

from stages.command import Parser, opened, run


def main(engine: str | None, datasets: list[str], rows: list[str], masks: list[str]) -> None:
    """Compute the missing cells of the part that is named."""
    from pipeline.experiment.engine.backend import chosen, parse
    from pipeline.experiment.run_sweep import Part, run_sweep

    backend = parse(engine) if engine else chosen()
    run_sweep(*opened(), backend, Part(datasets=datasets, rows=rows, masks=masks))


if __name__ == "__main__":
    parser = Parser(prog="python -m stages.sweep", description=__doc__)
    words = "inline, process[:WORKERS], ray[:WORKERS], ray:[WORKERS@]ADDRESS; default: TIRAMISU_ENGINE, else inline"
    parser.add_argument("--engine", help=words)
    for name in ("datasets", "rows", "masks"):
        parser.add_argument(f"--{name}", nargs="+", default=[], help="default: all of the sweep")
    given = vars(parser.parse_args())
    run(lambda: main(**given))
