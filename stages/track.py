"""Show everything on disk in MLflow: `python -m stages.track`. Adds what is missing, leaves alone what is there."""

from __future__ import annotations

import sys

from pipeline.errors import UserError
from stages.command import Parser


def main() -> int:
    """Project the records of the profile in params.yaml; exit 2 with one sentence if the store cannot be used."""
    Parser(prog="python -m stages.track", description=__doc__).parse_args()
    from pipeline.experiment.layout import Layout, find_root
    from pipeline.experiment.params import load_params
    from pipeline.experiment.registry import register
    from pipeline.experiment.tracking import open_store, project

    try:
        layout = Layout(find_root(), load_params(find_root() / "params.yaml").profile)
        store = open_store(layout.root, timeout=30)
        report = project(store, layout.runs.parent, layout.cells, layout.profile, layout.report)
        versions = register(store, layout.runs.parent, layout.profile)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    total = report.created + report.updated + report.present
    sys.stdout.write(
        f"{report.created} runs created, {report.updated} updated, {report.present} already complete in MLflow's "
        f"experiment tiramisu/{layout.profile}; {versions} model versions registered"
        + ("" if total else f"; there are no records in {layout.runs} yet, which `dvc repro` writes")
        + ".\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
