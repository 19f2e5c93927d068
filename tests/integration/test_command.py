"""The command from a shell: one whole run, looked at from every side, then once more, and interrupted in all ways."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.config.fields import SPLITS
from pipeline.config.load import load_config
from pipeline.config.resolved import jobs_of
from pipeline.config.schema import RunConfig
from pipeline.data.splits import TaskData
from pipeline.data.transfer import load_tasks
from pipeline.prepare import prepare, teacher_specs
from pipeline.run_folder import RESULT
from pipeline.training.log import METRICS, read_metrics
from pipeline.training.result import PREDICTIONS
from teachers.store import Store
from tests.integration.command import TUTELAGE, Command, assert_none_left, started, tutelage, wait_until
from tests.integration.conftest import MakeRun

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings(r"default:::(mlflow|alembic|sqlalchemy)\b"),
]


@dataclass(frozen=True)
class Finished:
    """A run that the command brought to its end."""

    folder: Path
    config: RunConfig
    data: dict[str, TaskData]
    command: Command
    report: dict[str, Any]

    @property
    def run_dir(self) -> Path:
        return self.config.run_dir


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun) -> Finished:
    """`tutelage train run.yaml`, uninterrupted, where nothing was before."""
    folder = tmp_path_factory.mktemp("command")
    file = make_run(folder, runs_dir=str(folder / "runs"))
    command = tutelage("train", file.name, cwd=folder)
    assert command.process.returncode == 0, command.output
    config = load_config(file)
    return Finished(folder, config, load_tasks(config), command, report_of(config.run_dir))


def report_of(run_dir: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run_dir / "report.json").read_text())
    return report


def stored(folder: Path) -> dict[str, bytes]:
    """Every weight and every stored prediction in a run folder."""
    files = [*folder.glob("students/*/*/*.safetensors"), *folder.glob(f"checkpoints/*/{PREDICTIONS}")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def scores_of(report: dict[str, Any]) -> list[Any]:
    """All of a report that must not change from one time to the next."""
    return [report["macro"], report["tasks"], report["seed"], report["size"]]


# ---------------------------------------------------------------- what a run leaves


def test_a_run_leaves_its_folder_and_no_process(first: Finished) -> None:
    assert {file.name for file in first.run_dir.iterdir()} - {".lock"} == {
        *("config.yaml", "report.json", "report.md", "timings.json", "figures", "students", "checkpoints"),
        *("inputs.json", "mlflow.json"),
    }
    assert {file.name for file in first.config.run_dir.parent.iterdir()} == {
        *("first", "_baselines", "_preflight", "_teachers", "_store", "_mlflow")
    }
    assert load_config(first.run_dir / "config.yaml") == first.config
    for word in ("Traceback", "WARNING", "did not answer"):
        assert word not in first.command.output, first.command.output
    assert any("raylet" in title for title in first.command.ever)  # the watch sees Ray, and saw it go
    for job in jobs_of(first.config):
        kept = {file.name for file in (first.run_dir / "checkpoints" / job.name).iterdir()}
        assert kept == {METRICS, PREDICTIONS, RESULT}
    figures = {file.suffix for file in (first.run_dir / "figures").iterdir()}
    assert figures == {".png"}


def test_report_has_what_is_promised(first: Finished) -> None:
    report, config = first.report, first.config
    assert {
        *("tasks", "macro", "teacher_forwards", "timings_s", "size", "latency", "seed", "versions")
    } <= report.keys()
    assert report["timings_s"].keys() >= {"start", "fine_tune", "label", "train", "evaluate"}
    assert report["tasks"].keys() == config.tasks.keys()
    for name, task in report["tasks"].items():
        assert task["metric"] == "accuracy"
        assert tuple(task["teachers"]) == config.teachers_of(name)
        assert task["examples"] == {split: len(first.data[name].splits[split]) for split in SPLITS}
        for student in config.students:
            result = task["students"][student]
            assert {"score", "supervised", "retention", "gap_recovered", "agreement", "ece"} <= result.keys()
            assert result["retention"] == pytest.approx(result["score"] / task["ensemble"])
    for student, macro in report["macro"]["students"].items():
        scores = [task["students"][student]["score"] for task in report["tasks"].values()]
        assert macro["score"] == pytest.approx(np.mean(scores))
    assert report["size"].keys() == {"students", "teachers"}
    for name, times in report["latency"]["tasks"].items():
        assert tuple(times["teachers"]) == config.teachers_of(name)
        assert times["students"].keys() == config.students.keys()
    assert report["versions"]["tutelage"]
    text = (first.run_dir / "report.md").read_text()
    for name in (*config.tasks, *config.teachers, *config.students):
        assert name in text


def test_each_teacher_saw_each_example_once(first: Finished) -> None:
    wanted = {name: first.data[teacher.task].distinct() for name, teacher in first.config.teachers.items()}
    assert first.report["teacher_forwards"] == wanted
    assert (first.config.train.epochs or 0) > 1
    store = Store(first.config.store_path)
    for folder in Path(first.config.store_path).iterdir():
        teacher = json.loads((folder / "teacher.json").read_text())
        examples = first.data[teacher["task"]].all_examples()
        assert len(store.missing(folder.name, np.concatenate([e.keys for e in examples]))) == 0


def test_labels_in_another_order_are_aligned_by_name(first: Finished) -> None:
    from transformers import pipeline

    store = Store(first.config.store_path)
    for spec in teacher_specs(first.config, prepare(first.config), ("mood-ready", "tone-ready")):
        teacher = first.config.teachers[spec.name]
        data = first.data[teacher.task]
        test = data.splits["test"]
        logits = store.view(spec.key, test.keys, data.task.reading.labels).gather(test.keys).values
        plain = pipeline("text-classification", teacher.model)
        told = plain(list(test.inputs["text"]), top_k=None)
        assert tuple((plain.model.config.id2label or {}).values()) != data.task.reading.labels
        assert np.ptp(logits.astype(np.float32), axis=1).mean() > 0.3  # it has opinions
        assert_same_answers(told, torch.from_numpy(logits.astype(np.float32)), data.task.reading.labels, 1e-2)


def test_students_open_with_plain_transformers(first: Finished) -> None:
    from transformers import pipeline

    for student in first.config.students:
        predictions = load_file(first.run_dir / "checkpoints" / f"{student}-distilled" / PREDICTIONS)
        for name, data in first.data.items():
            folder = first.run_dir / "students" / student / name
            told = pipeline("text-classification", str(folder))(
                list(data.splits["test"].inputs["text"]), top_k=None
            )
            assert_same_answers(told, predictions[name], data.task.reading.labels, 1e-4)
            score = np.mean(predictions[name].argmax(1).numpy() == data.splits["test"].labels.values)
            assert first.report["tasks"][name]["students"][student]["score"] == pytest.approx(score)
            card = (folder / "README.md").read_text()
            assert card.startswith("---\npipeline_tag: text-classification\n")
            assert f"**{100 * score:.1f}**" in card


def assert_same_answers(told: Any, logits: torch.Tensor, labels: tuple[str, ...], tolerance: float) -> None:
    """A transformers pipeline's probabilities by label name are those of (n, C) `logits`."""
    found = [{answer["label"]: answer["score"] for answer in answers} for answers in told]
    assert all(answers.keys() == set(labels) for answers in found)
    by_name = torch.tensor([[answers[label] for label in labels] for answers in found])
    assert torch.allclose(by_name, logits.softmax(1), rtol=0, atol=tolerance)


def test_mlflow_has_the_run_and_its_children(first: Finished) -> None:
    import mlflow

    config = first.config
    client = mlflow.MlflowClient(tracking_uri=config.tracking_uri)
    experiment = client.get_experiment_by_name("first")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.data.tags["role"] for name, run in runs.items()} == {
        "first": "parent",
        "mood-tuned": "teacher",
        "tone-tuned": "teacher",
        "mood-ready": "teacher",
        "tone-ready": "teacher",
        "cut-distilled": "student",
        "bare-distilled": "student",
        "cut-supervised": "baseline",
        "bare-supervised": "baseline",
        "ensemble": "ensemble",
    }
    parent = runs["first"]
    for name, run in runs.items():
        assert run.info.status == "FINISHED", name
        assert run is parent or run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.params["train.epochs"] == str(config.train.epochs)
    assert parent.data.params["tasks.mood.data.max_length"] == "32"
    assert parent.data.params["teachers.mood-tuned.fine_tune.learning_rate"] == "0.01"
    codes = dict.fromkeys(one["code"] for one in first.report["advice"])
    assert parent.data.tags["advice"] == (",".join(codes) or "none")
    described = parent.data.tags["mlflow.note.content"]
    assert described.startswith("[Students of first, by test score](#/experiments/")
    assert "of the ensemble" in described
    assert "| cut, supervised |" in described
    assert parent.inputs is not None
    data = {one.dataset.name: json.loads(str(one.dataset.profile)) for one in parent.inputs.dataset_inputs}
    assert data == {name: dict(task["examples"]) for name, task in first.report["tasks"].items()}
    assert "viewStateShareKey=students-first" in (first.run_dir / "report.md").read_text()
    assert "mlflow.sharedViewState.students-first" in experiment.tags
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"config.yaml", "report.json", "report.md", "figures"} <= artifacts

    student = runs["cut-distilled"]
    scored = {name: task["students"]["cut"] for name, task in first.report["tasks"].items()}
    for task, result in scored.items():
        assert {f"loss/soft/{task}", f"loss/hard/{task}", f"validation/{task}"} <= student.data.metrics.keys()
        assert student.data.metrics[f"test/{task}"] == pytest.approx(result["score"])
        assert student.data.metrics[f"retention/{task}"] == pytest.approx(result["retention"])
        assert f"loss/soft/{task}" not in runs["cut-supervised"].data.metrics
        assert f"test/{task}" in runs["cut-supervised"].data.metrics
    epochs = client.get_metric_history(student.info.run_id, "validation/macro")
    lines = read_metrics(first.run_dir / "checkpoints" / "cut-distilled" / METRICS)
    expected = [
        (line["step"], line["metrics"]["macro/score"]) for line in lines if "macro/score" in line["metrics"]
    ]
    assert [(point.step, point.value) for point in epochs] == expected
    assert len(expected) == config.train.epochs
    models = client.search_logged_models([experiment.experiment_id])
    assert {model.name for model in models} == {
        f"{student}-{task}" for student in config.students for task in config.tasks
    }
    assert {model.status for model in models} == {"READY"}
    model = next(model for model in models if model.name == "cut-tone")
    assert model.source_run_id == student.info.run_id
    texts = list(first.data["tone"].splits["test"].inputs["text"])
    mlflow.set_tracking_uri(config.tracking_uri)
    loaded = mlflow.transformers.load_model(model.model_uri)
    predictions = load_file(first.run_dir / "checkpoints" / "cut-distilled" / PREDICTIONS)["tone"]
    assert_same_answers(loaded(texts, top_k=None), predictions, first.data["tone"].task.reading.labels, 1e-4)


# ---------------------------------------------------------------- the other commands on it


def test_the_same_command_again_only_reports(first: Finished) -> None:
    before = stored(first.run_dir)
    again = tutelage("train", "run.yaml", cwd=first.folder)
    assert again.process.returncode == 0, again.output
    assert "nothing left to train" in again.output
    assert "WARNING" not in again.output
    assert not any("raylet" in title or "gcs_server" in title for title in again.ever)
    report = report_of(first.run_dir)
    assert set(report["teacher_forwards"].values()) == {0}
    assert scores_of(report) == scores_of(first.report)
    assert stored(first.run_dir) == before


def test_a_saved_student_is_scored_copied_and_compared(first: Finished, tmp_path: Path) -> None:
    student = first.run_dir / "students" / "bare"
    scored = tutelage("evaluate", str(student), cwd=first.folder)
    assert scored.process.returncode == 0, scored.output
    found = {words[0]: words[1:] for line in scored.output.splitlines() if (words := line.split())}
    tasks = found["metric"]
    assert set(tasks) == set(first.config.tasks)
    for task, result in first.report["tasks"].items():
        assert found["examples"][tasks.index(task)] == str(result["examples"]["test"])
        score = f"{result['students']['bare']['score']:.4f}"
        assert found[result["metric"]][tasks.index(task)] == score

    target = tmp_path / "out"
    copied = tutelage("export", str(student), "--task", "tone", "--to", str(target), cwd=first.folder)
    assert copied.process.returncode == 0, copied.output
    names = {file.name for file in (student / "tone").iterdir()}
    assert {file.name: file.read_bytes() for file in target.iterdir()} == {
        name: (student / "tone" / name).read_bytes() for name in names
    }

    compared = tutelage("compare", "runs/first", "--to", "csv", cwd=first.folder)
    assert compared.process.returncode == 0, compared.output
    table = list(csv.DictReader(io.StringIO(compared.output)))
    assert {row["student"] for row in table} == set(first.config.students)
    for row in table:
        macro = first.report["macro"]["students"][row["student"]]
        assert float(row["macro/score"]) == pytest.approx(macro["score"])


# ---------------------------------------------------------------- interrupted


@pytest.mark.timeout(900)  # four launches of Ray, on a machine that other tests use as well
def test_interrupted_in_every_way_and_resumed_is_uninterrupted(first: Finished, tmp_path: Path) -> None:
    """The same run in another place, with the teachers and the store of the first, stopped again and again."""
    runs = tmp_path / "runs"
    for shared in ("_teachers", "_store"):
        shutil.copytree(first.config.run_dir.parent / shared, runs / shared)
    run_dir = runs / "second"
    arguments = ("train", "run.yaml", "name=second", f"runs_dir={runs}")

    with started(TUTELAGE, *arguments, cwd=first.folder) as command:
        wait_until_training(command, run_dir)
        command.send(signal.SIGTERM)
        assert command.wait(60) == 75, command.output
        assert "soft targets: 576 from the store, 0 computed" in command.output
        assert "fine-tune" not in command.output
        assert "Traceback" not in command.output
        assert re.search(r"^error: \S", command.output, re.MULTILINE)
        assert_stopped(command, run_dir)

    with started(TUTELAGE, *arguments, cwd=first.folder) as command:
        wait_until_training(command, run_dir)
        command.send(signal.SIGINT, group=True)  # a terminal's Ctrl-C reaches Ray's processes as well
        wait_until(lambda: "stopping" in command.output, lambda: command.output, 5)
        command.send(signal.SIGINT)
        assert command.wait(5) == 130
        assert_none_left(command)

    with started(TUTELAGE, *arguments, cwd=first.folder) as command:
        wait_until_training(command, run_dir)
        command.send(signal.SIGKILL)
        assert command.wait(5) == -signal.SIGKILL
        # nobody is there to end Ray; of its own it goes at once, but for two agents that take a minute
        agents = ["ray::DashboardAgent", "ray::RuntimeEnvAgent"]
        wait_until(lambda: set(command.left()) <= set(agents), lambda: f"left behind: {command.left()}", 10)

    last = tutelage(*arguments, cwd=first.folder)
    assert last.process.returncode == 0, last.output
    report = report_of(run_dir)
    assert set(report["teacher_forwards"].values()) == {0}
    assert scores_of(report) == scores_of(first.report)
    assert stored(run_dir) == stored(first.run_dir)
    for job in jobs_of(first.config):
        assert curves(run_dir, job.name) == curves(first.run_dir, job.name)
    assert_one_finished_run_each(runs)


def wait_until_training(command: Command, run_dir: Path) -> None:
    """Until the job under way has taken steps of its own in this launch."""
    before = {file: file.stat().st_size for file in run_dir.glob(f"checkpoints/*/{METRICS}")}

    def grown() -> bool:
        assert not command.ended(), command.output
        files = run_dir.glob(f"checkpoints/*/{METRICS}")
        return any(file.stat().st_size > before.get(file, 0) for file in files)

    wait_until(grown, lambda: f"no training step in time:\n{command.output}", 240)


def assert_stopped(command: Command, run_dir: Path) -> None:
    """Nothing runs, nobody is asked to stop any more, and a checkpoint waits."""
    assert_none_left(command)
    assert not (run_dir / "STOP").exists()
    assert list(run_dir.glob("checkpoints/*/step-*/checkpoint.json"))
    assert not list(run_dir.glob("checkpoints/*/.part-*"))


def curves(run_dir: Path, job: str) -> list[tuple[int, dict[str, float]]]:
    """All points of a job but the seconds."""
    lines = read_metrics(run_dir / "checkpoints" / job / METRICS)
    return [
        (line["step"], {name: value for name, value in line["metrics"].items() if name != "time/epoch_s"})
        for line in lines
    ]


def assert_one_finished_run_each(runs: Path) -> None:
    """However often it was interrupted, MLflow has one parent and one run a job, all finished."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{runs / '_mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("second")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in found} == {"FINISHED"}
    trained = [run.info.run_name for run in found if run.data.tags["role"] not in ("teacher", "ensemble")]
    assert sorted(trained) == [
        "bare-distilled",
        "bare-supervised",
        "cut-distilled",
        "cut-supervised",
        "second",
    ]
    names = [run.info.run_name for run in found]
    assert len(set(names)) == len(names)
