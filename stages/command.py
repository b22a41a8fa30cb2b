"""What every entry does around its one call: arguments, parameters, and errors as one sentence with exit status 2."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.experiment.layout import Layout
    from pipeline.experiment.params import Params


def arguments(description: str | None, *names: str) -> dict[str, str]:
    """Parse required options, --dataset and the like."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    for name in names:
        parser.add_argument(f"--{name}", required=True)
    return vars(parser.parse_args())


def run(call: Callable[[], object]) -> None:
    """Call, and turn an error that is the user's to mend into a sentence."""
    from pipeline.errors import UserError
    from pipeline.files import NO_ROOM

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        call()
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        sys.stderr.write(
            f"{error.filename or Path.cwd()}: cannot be written ({error.strerror}); what is finished is kept, and "
            "nothing half-written counts: free some space and run the same command again, which goes on from there.\n"
        )
        sys.exit(2)


def opened() -> tuple[Params, Layout]:
    """Read params.yaml in the current folder."""
    from pipeline.experiment.layout import Layout, find_root
    from pipeline.experiment.params import load_params

    params = load_params()
    return params, Layout(find_root(), params.profile)
