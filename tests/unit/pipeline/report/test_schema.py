"""report.json's layout: written and read again unchanged, other versions and damaged files refused."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from docs import report_schema
from pipeline.errors import DataError
from pipeline.report.build import build
from pipeline.report.group import build as build_group
from pipeline.report.json_file import read, to_json
from pipeline.report.schema import Report
from tests.unit.pipeline.hand_results import numbers_and_marks, seeds_of, some_run, some_study


@pytest.mark.parametrize("run", [some_run, numbers_and_marks])
def test_what_is_written_is_read(tmp_path: Path, run: Any) -> None:
    report = build(*run())
    file = tmp_path / "report.json"
    file.write_text(to_json(report))
    assert read(file, Report) == report
    assert json.loads(file.read_text())["report_version"] == 2


def test_files_follow_the_published_schema() -> None:
    tasks, facts = some_run()
    reports = [build(tasks, one) for one in seeds_of(facts, 2)]
    validator: Any = import_module("jsonschema").Draft202012Validator  # Ray needs it; it has no types
    published = validator(json.loads(report_schema.render()))
    for content in (reports[0], build_group("several", reports)):
        published.validate(json.loads(to_json(content)))
    published.validate(some_study())
    odd = json.loads(to_json(reports[0]))
    del odd["macro"]
    assert not published.is_valid(odd)


@pytest.mark.parametrize("version", [None, 0, 1, "2"])
def test_another_version_is_refused(tmp_path: Path, version: object) -> None:
    content = json.loads(to_json(build(*some_run())))
    del content["report_version"]
    file = tmp_path / "report.json"
    file.write_text(json.dumps(content if version is None else {**content, "report_version": version}))
    with pytest.raises(DataError, match=r"has report version .*, this tutelage reads version 2") as caught:
        read(file, Report)
    assert str(file) in caught.value.cause
    assert "writes it anew" in caught.value.remedy


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"seed": "7"}, "seed: Input should be a valid integer"),
        ({"macro": {"ensemble": 0.9}}, "macro.students: Field required"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
    ],
)
def test_the_error_says_where(tmp_path: Path, change: dict[str, Any], where: str) -> None:
    file = tmp_path / "report.json"
    file.write_text(json.dumps({**json.loads(to_json(build(*some_run()))), **change}))
    with pytest.raises(DataError, match="is not a report") as caught:
        read(file, Report)
    assert where in caught.value.cause
    assert "\n" not in caught.value.cause


def test_a_number_that_is_none_is_refused_when_the_report_is_made() -> None:
    tasks, facts = some_run()
    with pytest.raises(ValueError, match="finite"):
        build(tasks, replace(facts, timings_s={"train": float(np.nan)}))


def test_reports_do_not_change() -> None:
    report = build(*some_run())
    with pytest.raises(ValueError, match="frozen"):
        report.seed = 8
