"""The last line of `make test`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.skipped import summary

ROOT = Path(__file__).resolve().parents[2]
SOME = """
import pytest


@pytest.mark.skipif(True, reason="no browser: apt-get install chromium")
@pytest.mark.parametrize("page", [1, 2])
def test_page(page: int) -> None: ...


def test_mount() -> None:
    pytest.skip("this user may not mount")


def test_runs() -> None: ...
"""


def test_nothing_was_skipped() -> None:
    assert summary([]) == "skipped: nothing"


def test_each_reason_has_its_count_and_its_command() -> None:
    reasons = [
        "no browser: apt-get install chromium",
        "may not mount",
        "no browser: apt-get install chromium",
    ]
    assert summary(reasons) == (
        "skipped: 1 (may not mount); 2 (no browser), enabled by `apt-get install chromium`"
    )


def test_pytest_writes_the_reasons_with_workers_too(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(SOME)
    file = tmp_path / "build" / "skipped.txt"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "tests.conftest", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"SKIPPED": str(file), "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert sorted(file.read_text().splitlines()) == [
        "no browser: apt-get install chromium",
        "no browser: apt-get install chromium",
        "this user may not mount",
    ]
