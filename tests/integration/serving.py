"""A real server for the length of a block, stopped as a person would."""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.integration.command import wait_until


@contextmanager
def serving(command: Sequence[str], url: str, log: Path) -> Iterator[int]:
    """`command` running in a session of its own until it answers at `url`, then until the block ends."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_until(lambda: answers(url), lambda: f"the server did not come up: {log.read_text()}", 120)
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def answers(url: str) -> bool:
    """Whether an MLflow server says at `url` that it is well."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
