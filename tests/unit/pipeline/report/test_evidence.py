"""The evidence names the config keys that its advice changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.config.load import parse_config
from pipeline.prepare import prepare
from pipeline.report.evidence import validation_key
from tests.conftest import TinyRun


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({}, "splits.validation"),
        ({"limit": {"validation": 9}}, "limit.validation"),
        ({"limit": {"validation": 900}}, "splits.validation"),  # it takes nothing away
    ],
)
def test_what_makes_validation_larger(tiny_run: TinyRun, changes: dict[str, Any], key: str) -> None:
    run = tiny_run()
    run["tasks"]["mood"]["data"] |= changes
    config = parse_config(run)
    data = prepare(config).data["mood"]
    assert validation_key(config, data) == f"tasks.mood.data.{key}"
    if not changes:
        held_out = replace(data, notes=("mood: no validation split: 7 examples of train held out for it",))
        assert validation_key(config, held_out) == "tasks.mood.data.holdout"
