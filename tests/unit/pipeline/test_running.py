"""The part of a run that comes before Ray: variants are made, guarded, and not made twice."""

from __future__ import annotations

import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.config.load import parse_config
from pipeline.display.display import Display
from pipeline.errors import ConfigError
from pipeline.prepare import Inputs
from pipeline.running import running
from tests.conftest import TinyFillMask, TinyRun


def begun(run: dict[str, Any]) -> tuple[Inputs, str]:
    """A run's inputs as its stages get them, and what it printed."""
    printed = StringIO()
    with (
        Display(Console(file=printed, soft_wrap=True)) as display,
        running(parse_config(run), display) as one,
    ):
        return one.inputs, printed.getvalue()


@pytest.fixture
def run(tiny_run: TinyRun, tiny_fill_mask: TinyFillMask, tmp_path: Path) -> dict[str, Any]:
    model = shutil.copytree(tiny_fill_mask(), tmp_path / "fill-mask")
    run = tiny_run()
    run["tasks"]["mood"]["augment"] = {"masked": {"model": str(model)}, "dropout": {}}
    return run


def test_variants_are_made_before_the_stages_and_asked_about_once(run: dict[str, Any]) -> None:
    first, printed = begun(run)
    made = first.data["mood"].variants
    assert "augment: variants of 1 task" in printed
    assert f"  augment mood: {made['masked'].asked}/{made['masked'].asked}" in printed
    (note,) = first.data["mood"].notes
    assert note in printed
    assert first.facts.tasks["mood"].examples == len(first.data["mood"].splits["train"])
    second, _ = begun(run)
    assert second.data["mood"].variants["masked"].asked == 0
    assert second.data["mood"].fingerprint() == first.data["mood"].fingerprint()
    other, _ = begun({**run, "name": "other"})
    assert other.data["mood"].variants["masked"].asked == 0


def test_a_run_is_refused_where_its_variants_have_changed(run: dict[str, Any]) -> None:
    begun(run)
    (Path(run["tasks"]["mood"]["augment"]["masked"]["model"]) / "vocab.txt").write_text("one file more\n")
    with pytest.raises(ConfigError, match=r"tasks\.mood\.augment\.masked\.model: its content has changed"):
        begun(run)
    run["tasks"]["mood"]["augment"]["dropout"] = {"share": 0.5}
    with pytest.raises(ConfigError, match="dropout"):
        begun(run)
