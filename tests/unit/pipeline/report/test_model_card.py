"""The model card of an exported student."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.load import parse_config
from pipeline.config.resolved import StudentSettings, student_settings
from pipeline.config.schema import RunConfig
from pipeline.report.model_card import write_model_card
from pipeline.report.schema import Report
from pipeline.tasks.text_classification import text_classification
from tests.conftest import TinyRun
from tests.unit.pipeline.facts import facts_of
from tests.unit.pipeline.hand_results import hand_report

MOOD = text_classification("mood", ("bad", "good"), 32, "accuracy")


def report_of(supervised: float | None) -> Report:
    report = hand_report(8, 7, 9)
    task = report.tasks["movies"]
    student = task.students["half"].model_copy(
        update={"score": 0.876, "supervised": supervised, "ece": 0.0371}
    )
    task = task.model_copy(
        update={
            "teachers": {"mood-bert": 0.9123, "mood-distilbert": 0.8999},
            "ensemble": 0.9251,
            "students": {"cut": student},
            "examples": {"train": 48, "validation": 16, "test": 17},
        }
    )
    return report.model_copy(update={"tasks": {"mood": task}})


def settings_of(config: RunConfig) -> StudentSettings:
    return student_settings(config, "cut", facts_of(config))


def test_the_model_card_has_the_numbers(tiny_run: TinyRun, tmp_path: Path) -> None:
    config = parse_config(tiny_run(loss={"hard": 1.0, "soft": 3.0, "temperature": 2.5}, seed=7))
    write_model_card(tmp_path, config, report_of(0.85), settings_of(config), MOOD)
    card = (tmp_path / "README.md").read_text()
    front, _, body = card.removeprefix("---\n").partition("---\n")
    assert "pipeline_tag: text-classification" in front
    for part in (
        "# cut: mood",
        "| teacher mood-bert | 91.2 |",
        "| teacher mood-distilbert | 90.0 |",
        "| ensemble of the teachers | 92.5 |",
        "| this student on labels alone | 85.0 |",
        "| **this student** | **87.6** |",
        "Test accuracy on 17 examples",
        "Trained on 48 examples",
        "labels: bad, good",
        "32 tokens",
        "seed 7",
        "0.25 hard + 0.75 soft at temperature",
        "2.5",
        "0.037",
        "Started from mood-bert",
    ):
        assert part in " ".join(body.split("\n")) or part in body, part


def test_the_model_card_without_a_baseline_claims_none(tiny_run: TinyRun, tmp_path: Path) -> None:
    config = parse_config(tiny_run(baselines=[]))
    write_model_card(tmp_path, config, report_of(None), settings_of(config), MOOD)
    assert "labels alone" not in (tmp_path / "README.md").read_text()


def test_the_model_card_states_the_loss_of_its_own_task(tiny_run: TinyRun, tmp_path: Path) -> None:
    loss = {"temperature": 2.5, "task_temperatures": {"mood": 1.5}, "annealing": "linear"}
    config = parse_config(tiny_run(loss=loss))
    write_model_card(tmp_path, config, report_of(None), settings_of(config), MOOD)
    card = (tmp_path / "README.md").read_text()
    assert "at temperature 1.5 (the soft weight falls to 0 over training)" in card
    assert "temperature 2.5" not in card
