"""Trackers on a real sqlite store.

`tracked_dir`  a runs folder with one database
`settings`     a config whose runs lie there, in an experiment of the test's own
`launch`       factory: → a tracker on the test's run folder, as one launch of a command has it
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config.schema import RunConfig
from pipeline.tracking.tracker import Tracker, open_tracker
from tests.unit.pipeline.tracked import Launch, config


@pytest.fixture(scope="session")
def tracked_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder shared by all tests that track, an experiment each: making the database takes seconds."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def settings(tracked_dir: Path, request: pytest.FixtureRequest) -> RunConfig:
    return config(tracked_dir, str(request.node.name)[:60])


@pytest.fixture
def launch(settings: RunConfig) -> Iterator[Launch]:
    """Opens trackers on the test's run folder, one after the other."""
    trackers: list[Tracker] = []

    def open_one() -> Tracker:
        trackers.append(open_tracker(settings, settings.run_dir))
        return trackers[-1]

    yield open_one
    for tracker in trackers:
        tracker.close(timeout_s=60)
