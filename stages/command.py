"""What every entry does around its one call: arguments, parameters, and errors as one sentence with exit status 2."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from pipeline.experiment.layout import Layout
    from pipeline.experiment.params import Params


class Parser(argparse.ArgumentParser):
    """A parser of options whose refusals are one line, too."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is, and exit with status 2."""
        from pipeline.errors import one_line

        self.exit(2, one_line(f"{self.prog}: {message}; --help lists the options.") + "\n")


def arguments(description: str | None, *names: str) -> dict[str, str]:
    """Parse required options, --dataset and the like."""
    parser = Parser(description=(description or "").splitlines()[0])
    for name in names:
        parser.add_argument(f"--{name}", required=True)
    return vars(parser.parse_args())


def run(call: Callable[[], object]) -> None:
    """Call, and turn an error that is the user's to mend into a sentence."""
    from pipeline.errors import UserError, one_line, reason
    from pipeline.files import NO_ROOM

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        call()
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    except (OSError, MemoryError) as error:  # the machine's: a full disk, no permission, no memory left
        place = getattr(error, "filename", None) or Path.cwd()
        text = f"{place}: this cannot go on, because {reason(error)}."
        if getattr(error, "errno", None) in NO_ROOM:
            text = (
                f"{place}: cannot be written ({reason(error)}); what is finished is kept, and nothing half-written "
                "counts: free some space and run the same command again, which goes on from there."
            )
        sys.stderr.write(one_line(text) + "\n")
        sys.exit(2)


def opened(**chosen: str) -> tuple[Params, Layout]:
    """Read params.yaml in the current folder, and hold what was chosen on the command line to it.

    Raises:
        ConfigError: params.yaml cannot be used, or has no such `dataset`, `method` or `steered` row.
    """
    from pipeline.experiment.layout import Layout, find_root
    from pipeline.experiment.limits import check_chosen
    from pipeline.experiment.params import load_params

    params = load_params()
    check_chosen(params, chosen)
    return params, Layout(find_root(), params.profile)
