"""One student of every task kind, as a person would run it: teachers of two architectures and tokenizers, labelled,
unlabelled and windowed examples, texts of other tasks, variants, one store, one report, and folders that plain transformers opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from pipeline.config.load import load_config
from pipeline.data.splits import load_task
from pipeline.predictor import Predictor
from tests.conftest import BAD, FILLER, GOOD, Architecture, TinyModel
from tests.integration.command import Command, tutelage

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

SIZES = {"train": 60, "validation": 20, "test": 20}
KINDS = ("mood", "topics", "strength", "entities", "answers")
VARIED = ("topics", "entities", "answers")
"""Tasks whose texts have variants."""
TEACHERS: dict[str, tuple[Architecture, ...]] = {
    **dict.fromkeys(KINDS, ("bert",)),
    "entities": ("bert", "mpnet"),
    "answers": ("bert", "mpnet"),
}


def sentence(rng: np.random.Generator) -> list[str]:
    """Six to eighteen words, a few of them good or bad."""
    words = [*rng.choice(FILLER, int(rng.integers(5, 14)))]
    words += [*rng.choice(GOOD, int(rng.integers(0, 3))), *rng.choice(BAD, int(rng.integers(0, 3)))]
    return [str(word) for word in rng.permutation([*words, rng.choice((*GOOD, *BAD))])]


def row(task: str, words: list[str]) -> dict[str, Any]:
    """One example of a task, its answer readable from the words."""
    good, bad = [w for w in words if w in GOOD], [w for w in words if w in BAD]
    text = " ".join(words)
    match task:
        case "mood":
            return {"text": text, "label": "good" if len(good) >= len(bad) else "bad"}
        case "topics":
            return {"text": text, "label": [*["warm"] * bool(good), *["cold"] * bool(bad)]}
        case "strength":
            half = len(words) // 2
            pair = {"first": " ".join(words[:half]), "second": " ".join(words[half:])}
            return {**pair, "score": 10.0 * (len(good) - len(bad))}
        case "entities":
            tags = ["B-POS" if w in GOOD else "B-NEG" if w in BAD else "O" for w in words]
            return {"tokens": words, "tags": tags}
        case _:
            return {"question": "what is good", "context": text, "answers": good[:1]}


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(file)


def config(folder: Path, tiny_model: TinyModel) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    columns = {
        "strength": {"text": "first", "text_pair": "second", "label": "score"},
        "entities": {"words": "tokens", "labels": "tags"},
    }
    kinds: dict[str, dict[str, Any]] = {
        "mood": {"kind": "text-classification"},
        "topics": {"kind": "text-classification", "problem": "multi_label"},
        "strength": {"kind": "text-classification", "problem": "regression"},
        "entities": {"kind": "token-classification"},
        "answers": {"kind": "question-answering"},
    }
    tasks: dict[str, Any] = {}
    for task in KINDS:
        files = {
            split: write(folder / task / f"{split}.jsonl", [row(task, sentence(rng)) for _ in range(count)])
            for split, count in SIZES.items()
        }
        data = {"path": "json", "data_files": files, "max_length": 32, "columns": columns.get(task, {})}
        tasks[task] = {**kinds[task], "data": data}
    more = [{"text": " ".join(sentence(rng))} for _ in range(30)]
    tasks["mood"]["data"]["unlabelled"] = {
        "path": "json",
        "data_files": write(folder / "mood" / "more.jsonl", more),
    }
    tasks["mood"]["transfer"] = "all"
    tasks["entities"]["transfer"] = ["answers", "mood"]
    tasks["answers"]["transfer"] = {"tasks": ["strength"], "limit": 20}
    for task in VARIED:
        tasks[task]["augment"] = {"dropout": {"variants": 2}}
    tuned = {"epochs": 3, "learning_rate": 5e-3, "head_learning_rate": 5e-3, "batch_size": 16}
    teachers = {
        f"{task}-{architecture}": {
            "task": task,
            "model": str(tiny_model(architecture)),
            "fine_tune": {**tuned},
            "preflight": "warn",  # three epochs of sixty examples
            **({"max_length": 24} if architecture == "mpnet" else {}),
        }
        for task, architectures in TEACHERS.items()
        for architecture in architectures
    }
    return {
        "name": "kinds",
        "tasks": tasks,
        "teachers": teachers,
        "students": {"cut": {"init_from": "mood-bert", "layers": 1, "max_length": {"answers": 28}}},
        "train": {"epochs": 2, "batch_size": 16, "learning_rate": 2e-3, "cpus_per_worker": 1},
        "cluster": {"cpus": 2},
        "tracking": {"enabled": False},
    }


@pytest.fixture(scope="module")
def done(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Command]:
    """The folder of a finished run, and the command that made it."""
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "run.yaml").write_text(yaml.safe_dump(config(folder, tiny_model), sort_keys=False))
    return folder, tutelage("train", "run.yaml", cwd=folder, timeout_s=400)


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "runs/kinds/report.json").read_text())
    return report


def test_every_kind_is_scored_by_its_own_metric(done: tuple[Path, Command]) -> None:
    folder, command = done

    assert command.process.returncode == 0, command.output
    metrics = {name: task["metric"] for name, task in report_of(folder)["tasks"].items()}
    assert metrics == {
        "mood": "accuracy",
        "topics": "micro_f1",
        "strength": "pearson",
        "entities": "f1",
        "answers": "f1",
    }


def test_each_teacher_saw_each_example_once(done: tuple[Path, Command]) -> None:
    report = report_of(done[0])

    assert report["forwards_ratio"] == 1.0
    own = 60 + 20 + 20
    answers = 60 + 1  # every context has the same question
    made = {task: report["tasks"][task]["variants"]["dropout"]["count"] for task in VARIED}
    assert all(60 < count <= 2 * 60 for count in made.values()), "two a text, but for copies"
    assert report["teacher_forwards"]["topics-bert"] == own + made["topics"]
    assert (
        report["teacher_forwards"]["mood-bert"] == own + 30 + answers + 60 + 2 * 60 + 60
    )  # the unlabelled ones, too
    assert report["teacher_forwards"]["entities-mpnet"] == own + answers + 60 + 30 + made["entities"]
    assert report["teacher_forwards"]["answers-bert"] == own + 20 + made["answers"]


def test_the_report_counts_the_texts_of_other_tasks(done: tuple[Path, Command]) -> None:
    folder, command = done
    report = report_of(folder)

    note = "mood: 301 texts of other tasks join train without labels: answers 61, entities 60, strength 120, topics 60"
    assert note in report["notes"]
    assert note in command.output
    assert report["tasks"]["mood"]["examples"] == {"train": 60 + 30 + 301, "validation": 20, "test": 20}


def test_every_teacher_was_looked_at_first(done: tuple[Path, Command]) -> None:
    findings = {one["teacher"]: one for one in report_of(done[0])["preflight"]}

    assert len(findings) == 7
    assert all(one["replica_difference"] == 0 for one in findings.values())
    assert all(one["self_loss"] < 1e-3 for one in findings.values())
    assert set(findings["answers-bert"]["agreement"]) == {"answers-mpnet"}


def test_a_text_of_windows_loses_nothing(done: tuple[Path, Command]) -> None:
    folder, _ = done
    notes = report_of(folder)["notes"]

    assert not [note for note in notes if "answers" in note and "truncated" in note]


@pytest.mark.parametrize("task", KINDS)
def test_saved_folders_answer_as_the_student_did(done: tuple[Path, Command], task: str) -> None:
    folder, _ = done
    settings = load_config(folder / "run.yaml")
    data = load_task(task, settings.tasks[task])
    length = settings.students["cut"].max_length.get(task)
    saved = Predictor(folder / "runs/kinds/students/cut" / task, data.task, max_length=length)
    answers, _ = saved.predict(data.splits["test"].inputs)
    predicted = load_file(folder / "runs/kinds/checkpoints/cut-distilled/predictions.safetensors")[task]

    np.testing.assert_allclose(answers.values, predicted, atol=2e-4)


def test_the_same_command_runs_no_teacher_again(done: tuple[Path, Command]) -> None:
    folder, _ = done
    before = report_of(folder)
    again = tutelage("train", "run.yaml", cwd=folder, timeout_s=400)

    assert again.process.returncode == 0, again.output
    assert report_of(folder)["forwards_ratio"] == 0
    assert report_of(folder)["macro"] == before["macro"]


def test_evaluate_knows_every_kind(done: tuple[Path, Command]) -> None:
    folder, _ = done
    command = tutelage("evaluate", "runs/kinds/students/cut", cwd=folder)

    assert command.process.returncode == 0, command.output
    for metric in ("accuracy", "micro_f1", "pearson", "f1", "exact_match"):
        assert metric in command.output
