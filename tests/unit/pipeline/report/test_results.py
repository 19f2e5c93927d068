"""What a report is made from: the values that students and teachers were trained with."""

from __future__ import annotations

from pipeline.config.load import parse_config
from pipeline.config.resolved import resolve_config
from pipeline.report.results import _recipe_values, _student_record
from pipeline.report.schema import RecipeRecord, StudentRecord
from tests.conftest import TinyRun
from tests.unit.pipeline.facts import facts_of


def test_records_have_given_and_derived_values_and_the_reasons(tiny_run: TinyRun) -> None:
    config = parse_config(tiny_run(train={"batch_size": 16, "early_stopping": None}, loss={"soft": 0.6}))
    resolved = resolve_config(config, facts_of(config))
    record = _student_record(resolved.students["cut"])
    assert (record.epochs, record.batch_size, record.learning_rate, record.patience) == (54, 16, 5e-5, None)
    assert record.derived.keys() == {"epochs", "learning_rate", "head_learning_rate"}
    assert record.loss["mood"].derived.keys() == {"hard", "temperature"}
    assert StudentRecord.model_validate_json(record.model_dump_json()) == record
    tuned = resolved.fine_tunings["mood-bert"]
    teacher = RecipeRecord(**_recipe_values(tuned.recipe, tuned.reasons))
    assert (teacher.epochs, teacher.head_learning_rate, teacher.derived) == (1, 1e-3, {})
