"""Made-up outcomes of a run, for the tests of report, figures and compare."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.batch import Examples, Ragged
from pipeline.report.build import build
from pipeline.report.group import build as build_group
from pipeline.report.json_file import to_json
from pipeline.report.schema import Latencies, Latency, Report, Size, Sizes, TaskLatencies
from pipeline.report.types import RunFacts, TaskResults
from pipeline.tasks.multi_label import multi_label
from pipeline.tasks.regression import regression
from pipeline.tasks.scores import softmax
from pipeline.tasks.text_classification import text_classification
from pipeline.tasks.token_classification import token_classification

STUDENTS = ("half", "tiny")


def examples_of(name: str, labels: NDArray[Any]) -> Examples:
    """Examples of which nothing but the labels is read."""
    keys = np.arange(len(labels), dtype=np.uint64)
    return Examples(name, keys, {"text": [""] * len(labels)}, Ragged.single(labels))


def logits_of(
    gold: NDArray[np.int64], classes: int, skill: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """(n, C) noise, the gold label raised by `skill`."""
    logits = rng.normal(size=(len(gold), classes))
    logits[np.arange(len(gold)), gold] += skill
    return np.asarray(logits, dtype=np.float32)


def answers(predicted: Sequence[int] | NDArray[np.int64], classes: int = 2) -> NDArray[np.float32]:
    """(n, C) logits that put each of `predicted` first."""
    logits: NDArray[np.float32] = np.eye(classes, dtype=np.float32)[np.asarray(predicted)] * np.float32(3)
    return logits


def some_task(
    metric: str = "accuracy",
    labels: tuple[str, ...] = ("negative", "positive"),
    n: int = 400,
    skill: float = 2.4,
    students: Sequence[str] = STUDENTS,
    supervised: bool = True,
    name: str = "movies",
) -> TaskResults:
    """Two teachers, their mean, students below it and baselines below them."""
    rng = np.random.default_rng(len(labels))
    gold = rng.integers(0, len(labels), n)
    teachers = {
        f"{name}-large": logits_of(gold, len(labels), skill, rng),
        f"{name}-base": logits_of(gold, len(labels), skill - 0.5, rng),
    }
    return TaskResults(
        task=text_classification(name, labels, 64, metric),
        test=examples_of(name, gold),
        examples={"train": 5 * n, "validation": n // 2, "test": n},
        teachers=teachers,
        ensemble=np.log(np.mean([softmax(logits) for logits in teachers.values()], axis=0)),
        students={
            student: logits_of(gold, len(labels), skill - 0.4 * rank - 0.3, rng)
            for rank, student in enumerate(students)
        },
        supervised={
            student: logits_of(gold, len(labels), skill - 0.4 * rank - 0.9, rng)
            for rank, student in enumerate(students)
            if supervised
        },
        aggregation="confidence",
        notes=["the ensemble is scored by mean: confidence needs labels"],
    )


def hand_task(student: int, supervised: int | None, ensemble: int, n: int = 10) -> TaskResults:
    """Two classes; of the answers the first so many are right."""
    gold = np.arange(n) % 2

    def right(count: int) -> NDArray[np.float32]:
        return answers(np.where(np.arange(n) < count, gold, 1 - gold))

    return TaskResults(
        task=text_classification("movies", ("no", "yes"), 64),
        test=examples_of("movies", gold),
        examples={"train": 3 * n, "validation": n, "test": n},
        teachers={"large": right(ensemble)},
        ensemble=right(ensemble),
        students={"half": right(student)},
        supervised={} if supervised is None else {"half": right(supervised)},
        aggregation="mean",
    )


def some_numbers(n: int = 300, name: str = "stars") -> TaskResults:
    """A regression: everybody is right but for noise, students and baselines with more of it."""
    rng = np.random.default_rng(1)
    gold = rng.normal(3, 1, n)

    def noisy(spread: float) -> NDArray[np.float32]:
        return (gold + rng.normal(0, spread, n)).astype(np.float32)[:, None]

    return TaskResults(
        task=regression(name, 64, center=3.0, scale=1.0),
        test=examples_of(name, gold),
        examples={"train": 5 * n, "validation": n // 2, "test": n},
        teachers={f"{name}-base": noisy(0.4)},
        ensemble=noisy(0.4),
        students={student: noisy(0.6) for student in STUDENTS},
        supervised={student: noisy(0.8) for student in STUDENTS},
        aggregation="mean",
    )


def some_marks(n: int = 300, name: str = "moods") -> TaskResults:
    """A multi-label task of three labels."""
    rng = np.random.default_rng(2)
    gold = (rng.random((n, 3)) < (0.5, 0.3, 0.1)).astype(np.int64)

    def noisy(spread: float) -> NDArray[np.float32]:
        return (4 * gold - 2 + rng.normal(0, spread, gold.shape)).astype(np.float32)

    return TaskResults(
        task=multi_label(name, ("calm", "glad", "loud"), 64),
        test=examples_of(name, gold),
        examples={"train": 5 * n, "validation": n // 2, "test": n},
        teachers={f"{name}-base": noisy(1.0)},
        ensemble=noisy(1.0),
        students={student: noisy(1.5) for student in STUDENTS},
        supervised={student: noisy(2.0) for student in STUDENTS},
        aggregation="mean",
    )


def some_entities(gold: Sequence[int], predicted: Sequence[int], types: Sequence[str]) -> TaskResults:
    """Sentences of four words; labels are O, then B- and I- of each type. The student predicts `predicted`."""
    labels = ("O", *(f"{place}-{kind}" for kind in types for place in "BI"))
    words = Ragged(np.asarray(gold), np.arange(0, len(gold) + 1, 4))
    values = answers(predicted, len(labels))
    return TaskResults(
        task=token_classification("names", labels, 64, "f1"),
        test=Examples(
            "names", np.arange(len(words), dtype=np.uint64), {"words": [["w"] * 4] * len(words)}, words
        ),
        examples={"train": 100, "validation": 10, "test": len(words)},
        teachers={"tagger": answers(gold, len(labels))},
        ensemble=answers(gold, len(labels)),
        students={"half": values},
        supervised={},
        aggregation="mean",
    )


def some_latencies(
    teachers: Mapping[str, Sequence[str]],
    students: Sequence[str] = STUDENTS,
    student_ms: float = 1.25,
    teacher_ms: float = 5.0,
) -> Latencies:
    """Every student and every teacher takes the same on each task; `teachers` by task."""
    student = Latency(best_ms=student_ms, median_ms=1.1 * student_ms)
    teacher = Latency(best_ms=teacher_ms, median_ms=1.1 * teacher_ms)
    tasks = {
        task: TaskLatencies(students=dict.fromkeys(students, student), teachers=dict.fromkeys(names, teacher))
        for task, names in teachers.items()
    }
    return Latencies(tasks=tasks, busy=None)


def some_facts(
    teachers: Sequence[str] | Mapping[str, Sequence[str]], students: Sequence[str] = STUDENTS
) -> RunFacts:
    """teachers: of the task "movies", or by task. A student has a fifth of a teacher's parameters and answers in a quarter of its time."""
    curve = [
        {
            "step": 10 * e,
            "epoch": e,
            "metrics": {"macro/score": 0.8 - 0.2 / e, "movies/accuracy": 0.9 - 0.3 / e},
        }
        for e in range(1, 4)
    ]
    by_task = teachers if isinstance(teachers, Mapping) else {"movies": teachers}
    teachers = [name for names in by_task.values() for name in names]
    return RunFacts(
        name="quickstart",
        seed=7,
        teacher_forwards=dict.fromkeys(teachers, 1300),
        soft_targets=dict.fromkeys(teachers, 2600),
        timings_s={"start": 8.25, "fine_tune": 120.5, "label": 30.0, "train": 211.0, "evaluate": 12.0},
        size=Sizes(
            students=dict.fromkeys(students, Size(parameters=4_000_000, bytes=16_000_000)),
            teachers=dict.fromkeys(teachers, Size(parameters=20_000_000, bytes=80_000_000)),
        ),
        latency=some_latencies(by_task, students),
        versions={"tutelage": "0.1.0", "torch": "2.13.0"},
        curves={job: curve for name in students for job in (name, f"{name}-supervised")},
        notes=["40 texts were truncated"],
    )


def teachers_of(tasks: Mapping[str, TaskResults]) -> dict[str, list[str]]:
    """Names by task."""
    return {task: list(results.teachers) for task, results in tasks.items()}


def some_run(**changes: object) -> tuple[dict[str, TaskResults], RunFacts]:
    """Two tasks, one scored by accuracy and one by macro F1; two students."""
    tweets = ("anger", "joy", "optimism", "sadness")
    tasks = {
        "movies": some_task(**changes),  # type: ignore[arg-type]
        "tweets": some_task("macro_f1", tweets, 300, name="tweets", **changes),  # type: ignore[arg-type]
    }
    students = tuple(tasks["movies"].students)
    return tasks, some_facts(teachers_of(tasks), students)


def numbers_and_marks() -> tuple[dict[str, TaskResults], RunFacts]:
    """A regression and a multi-label task beside one of one label."""
    tasks = {"movies": some_task(), "stars": some_numbers(), "moods": some_marks()}
    return tasks, some_facts(teachers_of(tasks))


def hand_report(student: int, supervised: int | None, ensemble: int, n: int = 10) -> Report:
    """The report of one task on which that many answers are right."""
    return build({"movies": hand_task(student, supervised, ensemble, n)}, some_facts(["large"], ["half"]))


def seeds_of(facts: RunFacts, count: int, group: str = "several") -> list[RunFacts]:
    """The same facts for every run of a group."""
    return [replace(facts, name=f"{group}-seed{seed}", seed=seed, group=group) for seed in range(count)]


# ---------------------------------------------------------------- on disk


def save_run(folder: Path, report: Report) -> Path:
    """A finished run's folder, as far as a comparison looks into it."""
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(to_json(report))
    return folder


def save_group(folder: Path, reports: Sequence[Report]) -> Path:
    """A finished group's folder, its runs' beside it."""
    folder.mkdir(parents=True)
    for report in reports:
        save_run(folder.parent / report.name, report)
    (folder / "group.json").write_text(to_json(build_group(folder.name, reports)))
    return folder


def save_study(folder: Path, study: dict[str, Any]) -> Path:
    """A search's folder."""
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps(study))
    return folder


def some_study(name: str = "search") -> dict[str, Any]:
    """Four trials: the later the better, but that the last one failed."""
    trials = [
        {
            "number": number,
            "status": status,
            "values": {
                "loss.temperature": 1.0 + number,
                "loss.annealing": "linear" if number % 2 else "constant",
            },
            "epochs": number + 1,
            "seconds": 10.5 * number,
            "scores": {}
            if status == "failed"
            else {"macro/score": 0.80 + number / 100, "movies/accuracy": 0.80 + number / 50},
            "failures": 0,
            "error": None,
            "best": number == 2,
            "pareto": number == 2,
        }
        for number, status in enumerate(("finished", "early-stopped", "finished", "failed"))
    ]
    return {
        "report_version": 2,
        "name": name,
        "student": "half",
        "metrics": ["macro/score"],
        "modes": ["max"],
        "space": {
            "loss.temperature": {"uniform": [1, 5]},
            "loss.annealing": {"choice": ["constant", "linear"]},
        },
        "algorithm": "tpe",
        "scheduler": "asha",
        "ensemble": {"macro/score": 0.9, "movies/accuracy": 0.9},
        "importance": {},
        "teacher_forwards": {"large": 0},
        "soft_targets": {"large": 100},
        "forwards_ratio": 0.0,
        "timings_s": {"search": 60.0},
        "test": None,
        "trials": trials,
    }
