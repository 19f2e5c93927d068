"""Teachers that hear and a student that learns to: a whole run by the command, on recordings of a toy language whose words are tones."""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.load import load_config
from pipeline.data.splits import load_task
from pipeline.tasks.recording import Recording, samples
from pipeline.training.result import read_predictions
from tests.integration.command import tutelage
from tests.tiny_speech import RATE, TONES, WINDOW_S, ctc, record, whisper

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
LONG = "la ti do re la ti do re la"
"""Longer than the models' window."""


LABELS_FRAMES = {
    "epochs": 50,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "head_learning_rate": 1e-2,
    "dropout": 0.0,
    "early_stopping": None,
    "precision": "fp32",
}
"""How a CTC model with random weights learns the language."""


def write_data(folder: Path) -> dict[str, str]:
    """Recordings in several formats, at several rates, and the files that name them; some of train have no text, and one is too long to be learnt."""
    recordings = folder / "recordings"
    recordings.mkdir()
    texts = [" ".join(words) for words in product(TONES, TONES, TONES)]
    random.Random(0).shuffle(texts)
    splits = {"train": [*texts[:48], LONG], "validation": texts[48:56], "test": [*texts[56:], LONG]}
    files = {}
    for split, own in splits.items():
        lines = []
        for number, text in enumerate(own):
            name, rate = f"{split}-{number}.{('wav', 'flac', 'mp3')[number % 3]}", (RATE, 22_050)[number % 2]
            record(recordings / name, text, rate=rate, channels=1 + number % 2)
            known = split != "train" or number % 8
            lines.append({"file": f"recordings/{name}", "transcript": text if known else None})
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("\n".join(map(json.dumps, lines)))
    return files


def write_run(folder: Path) -> Path:
    rates = {"learning_rate": 3e-3, "head_learning_rate": 3e-3, "early_stopping": None, "precision": "fp32"}
    tuned = {"epochs": 8, "batch_size": 8, **rates}
    config = {
        "name": "tones",
        "runs_dir": str(folder / "runs"),
        "tasks": {
            "speech": {
                "kind": "speech-recognition",
                "data": {
                    "path": "json",
                    "data_files": write_data(folder),
                    "columns": {"audio": "file", "text": "transcript"},
                    "target_length": 32,
                },
            }
        },
        "teachers": {
            "one": {
                "task": "speech",
                "model": str(whisper(folder / "one")),
                "fine_tune": tuned,
                "preflight": "warn",  # a few seconds of training: what it writes matters little
            },
            "two": {
                "task": "speech",
                "model": str(whisper(folder / "two", seed=1)),
                "fine_tune": tuned,
                "generation": {"beams": 2, "candidates": 2},
                "preflight": "warn",
            },
            "frames": {"task": "speech", "model": str(ctc(folder / "frames")), "preflight": "warn"},
        },
        "aggregation": {"teacher_weights": {"frames": 0.0}, "max_word_error": 0.5},
        "students": {"small": {"init_from": "one", "layers": {"encoder": 2, "decoder": 1}}},
        "train": {**tuned, "epochs": 8, "cpus_per_worker": 1},
        "tracking": {"enabled": False},
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("speech")
    command = tutelage("train", str(write_run(folder)), cwd=folder, timeout_s=700)
    assert command.process.returncode == 0, command.output
    return folder


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "runs" / "tones" / "report.json").read_text())
    return report


def test_a_run_scores_words_and_counts_what_it_leaves_out(folder: Path) -> None:
    report = report_of(folder)
    task, notes = report["tasks"]["speech"], " ".join(report["notes"])
    assert task["metric"] == "word_accuracy"
    for name in ("one", "two", "frames"):
        own = task["metrics"]["teachers"][name]
        assert own["word_accuracy"] == pytest.approx(1 - own["wer"])
    assert task["metrics"]["students"]["small"]["wer"] < 1, "it writes words of the language"
    assert task["metrics"]["students"]["small"]["perplexity"] > 1
    assert any("BasicTextNormalizer" in note for note in task["notes"]), "the normalisation is named"
    assert "of a recording that is longer than the model's window" in notes
    assert "resampled from another rate" in notes
    assert "mixed to one channel" in notes
    page = (folder / "runs" / "tones" / "report.md").read_text()
    assert "| WER |" in page
    assert "empty texts score" in page


@pytest.fixture(scope="module")
def by_frame(folder: Path) -> Path:
    """A finished run of two CTC teachers and a student of one of their layers, on the same data."""
    config = yaml.safe_load((folder / "run.yaml").read_text())
    model = str(ctc(folder / "letters", norm="layer"))
    teacher = {"task": "speech", "model": model, "fine_tune": LABELS_FRAMES, "preflight": "warn"}
    config |= {
        "name": "by-frame",
        "teachers": {"first": teacher, "second": {**teacher, "fine_tune": {**LABELS_FRAMES, "seed": 1}}},
        "aggregation": {},
        "students": {"light": {"init_from": "first", "layers": 1, "loss": {"hard": 0.5, "soft": 0.5}}},
        "train": {**LABELS_FRAMES, "cpus_per_worker": 1},
        "baselines": [],
    }
    (folder / "by-frame.yaml").write_text(yaml.safe_dump(config))
    command = tutelage("train", "by-frame.yaml", cwd=folder, timeout_s=700)
    assert command.process.returncode == 0, command.output
    assert "token targets: 0 texts from the store, 98 computed" in command.output, (
        "49 recordings, two teachers"
    )
    return folder


def test_ctc_teachers_teach_frame_by_frame(by_frame: Path) -> None:
    report = json.loads((by_frame / "runs" / "by-frame" / "report.json").read_text())
    metrics = report["tasks"]["speech"]["metrics"]
    assert all(one["wer"] < 0.8 for one in (*metrics["teachers"].values(), *metrics["students"].values()))
    assert "perplexity" not in metrics["students"]["light"]
    command = tutelage("check", "by-frame.yaml", "loss.label_smoothing=0.1", cwd=by_frame)
    assert command.process.returncode == 2
    assert "which have no label_smoothing" in command.output


@pytest.mark.parametrize(("run", "student"), [("tones", "small"), ("by-frame", "light")])
def test_a_folder_opens_with_the_pipeline_and_writes_what_was_scored(
    by_frame: Path, run: str, student: str
) -> None:
    from transformers import pipeline

    folder, config = by_frame / "runs" / run, load_config(str(by_frame / "run.yaml"))
    test = load_task("speech", config.tasks["speech"]).splits["test"]
    scored = read_predictions(folder / "checkpoints" / f"{student}-distilled")["speech"][:, 0].tolist()
    transcribe: Any = pipeline("automatic-speech-recognition", str(folder / "students" / student / "speech"))
    for reference, text in zip(test.inputs["source"], scored, strict=True):
        sound = {"raw": samples(reference, RATE), "sampling_rate": RATE}
        whole = student == "light" or Recording.of(reference).seconds <= WINDOW_S
        long = {} if whole else {"chunk_length_s": WINDOW_S, "ignore_warning": True}
        assert transcribe(sound, **long)["text"].strip() == text


def test_the_command_again_runs_no_teacher(folder: Path) -> None:
    command = tutelage("train", "run.yaml", "name=again", cwd=folder, timeout_s=700)
    assert command.process.returncode == 0, command.output
    again: dict[str, Any] = json.loads((folder / "runs" / "again" / "report.json").read_text())
    assert set(again["teacher_forwards"].values()) == {0}
    assert again["tasks"] == report_of(folder)["tasks"], "the same texts, the same students"
