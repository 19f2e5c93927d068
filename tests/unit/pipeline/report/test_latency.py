"""The estimator on a clock of the test's own; real models timed on the same examples."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.load import parse_config
from pipeline.models import open_tokenizer
from pipeline.predictor import Predictor
from pipeline.prepare import prepare
from pipeline.report import latency
from pipeline.report.latency import EXAMPLES, FEWEST_ROUNDS, ROUNDS, busy, latencies, measure
from pipeline.report.schema import Latency, TaskLatencies
from pipeline.run_folder import student_folder
from students.export import save_task
from students.student import build_student
from tests.conftest import TinyModel, TinyRun


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, int], float]], Callable[[int], None]]:
    """Makes a model that answers example e for the nth time in so many seconds of a clock that nothing else moves."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def model(seconds: Callable[[int, int], float]) -> Callable[[int], None]:
        asked: dict[int, int] = {}

        def answer(example: int) -> None:
            asked[example] = asked.get(example, -1) + 1
            clock.now += seconds(example, asked[example])

        return answer

    return model


def test_the_best_of_the_rounds_by_example(takes: Any) -> None:
    """Every answer but one of an example is disturbed, each example in another round."""
    model = takes(lambda example, n: 0.010 * (1 + example) + (0 if n == 5 + example else 0.1))
    times = measure({"half": model}, [0, 1, 2], seconds=60)
    assert times["half"].best_ms == pytest.approx((10 + 20 + 30) / 3)
    assert times["half"].median_ms == pytest.approx((10 + 20 + 30) / 3 + 100)


def test_models_answer_in_turn_the_same_examples() -> None:
    calls: list[tuple[str, int]] = []
    models = {name: (lambda example, name=name: calls.append((name, example))) for name in ("half", "large")}
    measure(models, [0, 1], seconds=60)
    one_round = [("half", 0), ("half", 0), ("half", 1), ("large", 0), ("large", 0), ("large", 1)]
    assert calls == one_round * ROUNDS  # the first answer of each turn is not timed


def test_the_time_is_bounded(takes: Any) -> None:
    counts = {"slow": 0, "quick": 0}

    def counting(name: str, seconds: float) -> Any:
        def answer(example: int, _: int) -> float:
            counts[name] += 1
            return seconds

        return takes(answer)

    measure({"slow": counting("slow", 2.0), "quick": counting("quick", 0.001)}, [0], seconds=1)
    assert counts == {"slow": 2 * FEWEST_ROUNDS, "quick": 2 * FEWEST_ROUNDS}


@pytest.mark.parametrize(
    ("median", "load", "words"),
    [
        (1.2, 1.0, None),
        (2.0, 1.0, "the median answer of half on movies took 2.0 times as long as its best"),
        (1.2, 4.5, "the load average was 4.5 on 2 cores"),
        (1.2, 3.9, None),  # what the run's own training leaves behind
    ],
)
def test_a_busy_machine_is_named(median: float, load: float, words: str | None) -> None:
    calm = Latency(best_ms=5.0, median_ms=5.5)
    half = Latency(best_ms=1.0, median_ms=median)
    assert (
        busy({"movies": TaskLatencies(students={"half": half}, teachers={"large": calm})}, load, 2) == words
    )


def test_students_and_teachers_are_timed_on_the_same_texts_of_each_task(
    tiny_run: TinyRun, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    spaces = {"mood": ("bad", "good"), "tone": ("bad", "good", "plain")}
    teachers = {
        f"{task}-bert": {"task": task, "model": str(tiny_model("bert", labels))}
        for task, labels in spaces.items()
    }
    bare = {"bare": {"model": str(tiny_model("bert", layers=1, seed=1))}}
    config = parse_config(tiny_run(teachers=teachers, students=bare))
    inputs = prepare(config)
    student = build_student(
        tiny_model("bert", layers=1, seed=1), [data.task for data in inputs.data.values()]
    )
    for task in inputs.data:
        save_task(
            student,
            task,
            open_tokenizer(tiny_model("bert", layers=1, seed=1)),
            student_folder(config.run_dir, "bare", task),
        )
    texts: dict[tuple[str, int], set[str]] = {}
    predict = Predictor.predict

    def recorded(self: Predictor, rows: Any) -> Any:
        (text,) = rows["text"]  # one example alone
        assert torch.get_num_threads() == 1
        layers = len(self.model.bert.encoder.layer)
        texts.setdefault((self.task.name, layers), set()).add(text)
        return predict(self, rows)

    monkeypatch.setattr(Predictor, "predict", recorded)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        times = latencies(config, inputs)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    for task, models in times.tasks.items():
        assert texts[task, 1] == texts[task, 2]  # the student has one layer, the teacher two
        assert 0 < len(texts[task, 1]) <= EXAMPLES
        assert list(models.teachers) == [f"{task}-bert"]
        for one in (*models.students.values(), *models.teachers.values()):
            assert 0 < one.best_ms <= one.median_ms
    assert times.student_ms("bare") == pytest.approx(
        np.mean([models.students["bare"].best_ms for models in times.tasks.values()])
    )
