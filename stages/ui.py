"""Look at the runs: `python -m stages.ui [--port 5000]` serves MLflow's pages to this machine only and prints links.

If MLFLOW_TRACKING_URI names a server, that server shows the pages, and only the links are printed.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING
from urllib.parse import quote

from pipeline.errors import UserError
from stages.command import Parser

if TYPE_CHECKING:
    from pipeline.experiment.tracking import Store

HOST = "127.0.0.1"
PATIENCE = 120.0  # seconds the server may take to start
VIEWS: tuple[tuple[str, dict[str, str]], ...] = (  # what MLflow's page of runs shows, as its address says it
    ("The runs are at", {}),
    ("Methods side by side:", {"searchFilter": "tags.kind = 'row'", "compareRunsMode": "CHART"}),
    ("The table of the paper:", {"searchFilter": "tags.kind = 'row'", "compareRunsMode": "ARTIFACT"}),
)
LEAN = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


def main() -> int:
    """Serve the runs of the profile in params.yaml until interrupted; exit 2 with one sentence if that cannot be."""
    parser = Parser(prog="python -m stages.ui", description=__doc__)
    parser.add_argument("--port", type=int, default=5000)
    port = parser.parse_args().port
    try:
        _require_free(port)
        from pipeline.experiment.layout import find_root
        from pipeline.experiment.params import load_params
        from pipeline.experiment.tracking import open_store

        store = open_store(find_root())
        experiment = store.experiment(load_params(find_root() / "params.yaml").profile)
        if store.served:
            sys.stdout.write(_links(store.uri, experiment))
            return 0
        return _serve(store, port, _links(f"http://{HOST}:{port}", experiment))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2


def _links(server: str, experiment: str) -> str:
    """List the pages to begin with."""
    path = f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning"  # not the pages for chat programs
    lines = [f"{what} {path}{''.join(f'&{key}={quote(text)}' for key, text in view.items())}" for what, view in VIEWS]
    return "\n".join([*lines, f"The trained models are at {server}/#/models"]) + "\n"


def _require_free(port: int) -> None:
    """Raise UserError if another program listens at the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"Port {port} of {HOST} cannot be used ({error}); choose another: python -m stages.ui --port 5001"
            ) from error


def _serve(store: Store, port: int, links: str) -> int:
    """Run the server until it or this process is told to end."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri]
    command += ["--artifacts-destination", str(store.artifacts), "--host", HOST, "--port", str(port)]
    command += ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with subprocess.Popen(command, env=os.environ | LEAN) as server:
        try:
            _await(server, port)
            sys.stdout.write(f"\n{links}Stop with Ctrl-C.\n\n")
            sys.stdout.flush()
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            server.terminate()


def _await(server: subprocess.Popen[bytes], port: int) -> None:
    """Wait until the server answers; raise UserError if it ends or stays silent."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise UserError(f"MLflow's server ended with status {server.returncode}; its messages above say why.")
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise UserError(f"MLflow's server has not answered within {PATIENCE:.0f} s.")


if __name__ == "__main__":
    sys.exit(main())
