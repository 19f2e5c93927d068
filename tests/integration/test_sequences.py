"""Teachers that write and students that learn to: a whole run by the command, again, killed, damaged, searched."""

from __future__ import annotations

import json
import signal
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.config.load import load_config
from pipeline.data.splits import load_task
from pipeline.models import open_tokenizer
from pipeline.prepare import prepare, teacher_specs
from pipeline.training.log import METRICS, read_metrics
from pipeline.training.result import read_predictions
from teachers.store import Store
from teachers.upkeep import holdings, runs_of
from tests.integration.command import TUTELAGE, started, tutelage, wait_until
from tests.tiny_writers import WORDS, writer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
NOUNS, ADJECTIVES, VERBS = ("cat", "dog"), ("red", "big"), ("sees",)
ARTICLES = ("the", "a")
RATES = {"learning_rate": 5e-3, "head_learning_rate": 5e-3, "early_stopping": None, "precision": "fp32"}


def write_pairs(folder: Path) -> dict[str, str]:
    """Sentences of a toy language and their translations, word by word, and some sources without one."""
    texts = [
        " ".join(words) for words in product(ARTICLES, ADJECTIVES, NOUNS, VERBS, ARTICLES, ADJECTIVES, NOUNS)
    ]
    files = {}
    for split, rows in {
        "train": texts[::2] + texts[1::4],
        "validation": texts[3::8],
        "test": texts[7::8],
    }.items():
        lines = [{"source": text, "target": " ".join(WORDS[word] for word in text.split())} for text in rows]
        if split == "train":
            for line in lines[-8:]:
                line["target"] = None  # type: ignore[assignment]
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("\n".join(map(json.dumps, lines)))
    return files


def write_run(folder: Path, **changes: Any) -> Path:
    files = write_pairs(folder)
    tuned = {"epochs": 16, "batch_size": 4, **RATES}
    section = {
        "kind": "sequence-to-sequence",
        "data": {"path": "json", "data_files": files, "max_length": 24, "target_length": 16},
    }
    config = {
        "name": "words",
        "runs_dir": str(folder / "runs"),
        "tasks": {"translate": section},
        "teachers": {
            "greedy": {"task": "translate", "model": str(writer("t5", folder / "t5")), "fine_tune": tuned},
            "beams": {
                "task": "translate",
                "model": str(writer("t5", folder / "t5-other", seed=1)),
                "fine_tune": tuned,
                "generation": {"beams": 3, "candidates": 2},
            },
        },
        "students": {"small": {"init_from": "greedy", "layers": {"encoder": 2, "decoder": 1}}},
        "baselines": ["supervised", "best_teacher"],
        "loss": {"hard": 0.5, "soft": 0.5, "text": 0.5},
        # as many threads in every launch, however busy the machine: their number changes the rounding
        "train": {**tuned, "epochs": 6, "checkpoint_steps": 5, "cpus_per_worker": 1},
        "tracking": {"enabled": False},
        **changes,
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("sequences")
    command = tutelage("train", str(write_run(folder)), cwd=folder, timeout_s=700)
    assert command.process.returncode == 0, command.output
    return folder


def report_of(folder: Path, name: str = "words") -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "runs" / name / "report.json").read_text())
    return report


def test_every_source_is_written_for_once(folder: Path) -> None:
    report, config = report_of(folder), load_config(str(folder / "run.yaml"))
    sources = load_task("translate", config.tasks["translate"]).distinct()
    assert report["teacher_forwards"] == {"greedy": sources, "beams": sources}
    assert report["forwards_ratio"] == 1.0
    held = holdings(Store(config.store_path))
    assert len(held) == 4, "texts and token targets of two teachers"
    assert {tuple(runs_of(one)) for one in held} == {(folder / "runs" / "words",)}
    task = report["tasks"]["translate"]
    assert task["metric"] == "chrf"
    assert 0 < task["students"]["small"]["best_teacher"] <= 1
    assert 0 < task["metrics"]["students"]["small"]["token_accuracy"] <= 1
    assert any("nrefs:1" in note for note in task["notes"]), "sacrebleu's signature"
    page = (folder / "runs" / "words" / "report.md").read_text()
    assert "copies of the sources score" in page
    assert "Texts on which students and ensemble differ most" in page


def test_a_folder_opens_with_transformers_and_writes_what_was_scored(folder: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM

    run, config = folder / "runs" / "words", load_config(str(folder / "run.yaml"))
    exported = run / "students" / "small" / "translate"
    model, words = AutoModelForSeq2SeqLM.from_pretrained(exported), open_tokenizer(exported)
    test = load_task("translate", config.tasks["translate"]).splits["test"]
    batch = words(list(test.inputs["source"]), padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        written = words.batch_decode(model.generate(**batch), skip_special_tokens=True)
    scored = read_predictions(run / "checkpoints" / "small-distilled")["translate"][:, 0].tolist()
    assert [text.strip() for text in written] == scored
    targets = words(text_target=test.inputs["target"], padding=True, return_tensors="pt")
    mask = targets["attention_mask"].bool()
    labels = targets["input_ids"].masked_fill(~mask, -100)
    with torch.no_grad():
        likeliest = model(**batch, labels=labels).logits.argmax(dim=-1)
    forced = report_of(folder)["tasks"]["translate"]["metrics"]["students"]["small"]["token_accuracy"]
    assert float((likeliest == labels)[mask].double().mean()) == pytest.approx(forced)


def test_the_command_again_runs_no_teacher(folder: Path) -> None:
    command = tutelage("train", "run.yaml", "name=again", cwd=folder, timeout_s=700)
    assert command.process.returncode == 0, command.output
    report = report_of(folder, "again")
    assert set(report["teacher_forwards"].values()) == {0}
    assert ", 0 computed" in command.output.split("token targets: ")[1]
    assert report["tasks"] == report_of(folder)["tasks"], "the same texts, the same students"


def test_a_run_with_another_loss_takes_the_baseline_over(folder: Path) -> None:
    options = ("name=harder", "loss.text=0", "loss.soft=0.1", "loss.hard=0.9", "baselines=[supervised]")
    command = tutelage("train", "run.yaml", *options, cwd=folder, timeout_s=700)
    assert command.process.returncode == 0, command.output
    assert "small-supervised: run words has trained the same baseline; it is taken over" in command.output
    mine, first = (
        report_of(folder, name)["tasks"]["translate"]["students"]["small"] for name in ("harder", "words")
    )
    assert mine["supervised"] == first["supervised"]
    assert any("as run words trained it" in note for note in report_of(folder, "harder")["notes"])


def test_a_killed_training_ends_with_the_same_texts(folder: Path) -> None:
    metrics = folder / "runs" / "killed" / "checkpoints" / "small-distilled" / METRICS
    with started(TUTELAGE, "train", "run.yaml", "name=killed", cwd=folder) as command:
        wait_until(lambda: bool(read_metrics(metrics)), lambda: command.output, 240)
        command.send(signal.SIGKILL)
        command.wait(10)
    command = tutelage("train", "run.yaml", "name=killed", cwd=folder, timeout_s=700)
    assert command.process.returncode == 0, command.output
    for job in ("small-distilled", "small-supervised", "small-best_teacher"):
        killed, whole = (
            read_predictions(folder / "runs" / name / "checkpoints" / job)["translate"].tolist()
            for name in ("killed", "words")
        )
        assert killed == whole, job


def test_damaged_texts_are_written_again(folder: Path) -> None:
    config = load_config(str(folder / "run.yaml"))
    (spec,) = teacher_specs(config, prepare(config), ["beams"])
    stored = folder / "runs" / "_store" / spec.key
    for shard in stored.glob("*.arrow"):
        shard.write_bytes(shard.read_bytes()[:-8] + b"damaged!")
    command = tutelage("label", "run.yaml", cwd=folder)
    assert command.process.returncode == 0, command.output
    assert "corrupt" in command.output
    keys = load_task("translate", config.tasks["translate"]).splits["test"].keys
    assert not len(Store(str(folder / "runs" / "_store")).missing(spec.key, keys))


def test_a_search_compares_texts_and_strategies_without_a_teacher(folder: Path) -> None:
    config = yaml.safe_load((folder / "run.yaml").read_text())
    config["name"], config["baselines"] = "search", []
    config["tune"] = {
        "trials": 3,
        "algorithm": "random",
        "scheduler": "none",
        "space": {
            "loss.text": {"choice": [0.0, 1.0]},
            "aggregation.strategy": {"choice": ["consensus", "mean"]},
        },
    }
    config["train"]["epochs"] = 2
    (folder / "search.yaml").write_text(yaml.safe_dump(config))
    command = tutelage("tune", "search.yaml", cwd=folder, timeout_s=700)
    assert command.process.returncode == 0, command.output
    study = json.loads((folder / "runs" / "search-study" / "study.json").read_text())
    assert len(study["trials"]) == 3
    assert set(study["teacher_forwards"].values()) == {0}
