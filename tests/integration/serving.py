"""A real server for the length of a block, stopped as a person would."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from examples.mlflow_server import is_well
from tests.integration.command import wait_until


@contextmanager
def serving(command: Sequence[str], url: str, log: Path) -> Iterator[int]:
    """`command` running in a session of its own until MLflow answers at `url`, then until the block ends."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_until(lambda: is_well(url), lambda: f"the server did not come up: {log.read_text()}", 120)
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)
