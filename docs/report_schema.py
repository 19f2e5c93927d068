"""Writes docs/report.schema.json: the JSON schema of report.json, group.json, rounds.json and study.json, out of pipeline/report/.

::

    python docs/report_schema.py

Descriptions are the classes' and attributes' docstrings; tests/unit/test_docs.py fails while the committed file differs.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic.json_schema import JsonSchemaMode, models_json_schema

from pipeline.report.rounds import RoundsReport
from pipeline.report.schema import GroupReport, Record, Report, StudyReport

PAGE = Path(__file__).with_name("report.schema.json")
WRITTEN: JsonSchemaMode = "serialization"  # every key is required: each is in every file
MODELS: tuple[type[Record], ...] = (Report, GroupReport, RoundsReport, StudyReport)


def render() -> str:
    """The whole file: any of these layouts is valid."""
    _, definitions = models_json_schema([(model, WRITTEN) for model in MODELS], title="tutelage reports")
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **definitions,
        "anyOf": [{"$ref": f"#/$defs/{model.__name__}"} for model in MODELS],
    }
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(PAGE)
