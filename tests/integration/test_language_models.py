"""Language models: prompts and conversations, teachers of two families, one student of both tasks, by the command."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.load import load_config
from pipeline.data.splits import load_task
from pipeline.models import open_tokenizer
from pipeline.training.result import read_predictions
from tests.integration.command import tutelage
from tests.tiny_writers import WORDS, writer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
TEMPLATE = "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"
"""Without a mark of the answer: it begins where the prompt ends."""


def write_data(folder: Path) -> dict[str, dict[str, str]]:
    """Files by task and split: texts and their translations, as prompts and completions, and as conversations."""
    nouns, articles = ("cat", "dog"), ("the", "a")
    texts = [
        " ".join(words) for words in product(articles, ("red", "big"), nouns, ("sees",), articles, nouns)
    ]
    files: dict[str, dict[str, str]] = {"plain": {}, "talk": {}}
    splits = {"train": texts[::4], "more": texts[2::4], "validation": texts[1::4], "test": texts[3::4]}
    for split, rows in splits.items():
        pairs = [(text, " ".join(WORDS[word] for word in text.split())) for text in rows]
        lines: dict[str, list[dict[str, Any]]] = {
            "plain": [{"prompt": text, "completion": f" {target}"} for text, target in pairs],
            "talk": [
                {
                    "messages": [
                        {"role": "user", "content": text},
                        {"role": "assistant", "content": target},
                    ]
                }
                for text, target in pairs
            ],
        }
        for task, own in lines.items():
            files[task][split] = str(folder / f"{task}-{split}.jsonl")
            Path(files[task][split]).write_text("\n".join(map(json.dumps, own)))
    return files


def teacher(family: str, folder: Path, seed: int = 0) -> str:
    """A model of the family whose tokenizer has a chat template."""
    writer(family, folder, seed)
    words = open_tokenizer(folder)
    words.chat_template = TEMPLATE
    words.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("language")
    files = write_data(folder)
    tuned = {"epochs": 12, "batch_size": 4, "learning_rate": 5e-3, "precision": "fp32"}
    data = {"path": "json", "max_length": 32, "target_length": 16}
    gpt2, llama = (teacher(family, folder / family, seed) for seed, family in enumerate(("gpt2", "llama")))
    config = {
        "name": "language",
        "runs_dir": str(folder / "runs"),
        "tasks": {
            "plain": {
                "kind": "text-generation",
                "data": {
                    **data,
                    "data_files": {split: files["plain"][split] for split in ("train", "validation", "test")},
                    "unlabelled": {"path": "json", "data_files": files["plain"]["more"]},
                },
            },
            "talk": {
                "kind": "text-generation",
                "metric": "chrf",
                "prefix": "the",
                "data": {
                    **data,
                    "data_files": {split: files["talk"][split] for split in ("train", "validation", "test")},
                    "columns": {"messages": "messages"},
                    "unlabelled": {"path": "json", "data_files": files["talk"]["more"]},
                },
            },
        },
        "teachers": {
            "plain-gpt2": {"task": "plain", "model": gpt2, "fine_tune": tuned, "preflight": "warn"},
            "plain-llama": {"task": "plain", "model": llama, "fine_tune": tuned, "preflight": "warn"},
            "talk-gpt2": {"task": "talk", "model": gpt2, "fine_tune": tuned, "preflight": "warn"},
        },
        "students": {"small": {"init_from": "plain-gpt2", "layers": 2}},
        "baselines": [],
        "loss": {"hard": 0.5, "soft": 0.5},
        "train": {**tuned, "cpus_per_worker": 1},
        "tracking": {"enabled": False},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    command = tutelage("train", "run.yaml", cwd=folder, timeout_s=700)
    assert command.process.returncode == 0, command.output
    return folder


def test_each_task_s_prompts_go_to_its_own_teachers_once(folder: Path) -> None:
    report = json.loads((folder / "runs/language/report.json").read_text())
    config = load_config(str(folder / "run.yaml"))
    sources = {name: load_task(name, task).distinct() for name, task in config.tasks.items()}
    assert report["teacher_forwards"] == {
        "plain-gpt2": sources["plain"],
        "plain-llama": sources["plain"],
        "talk-gpt2": sources["talk"],
    }
    assert {name: task["metric"] for name, task in report["tasks"].items()} == {
        "plain": "rouge_l",
        "talk": "chrf",
    }
    for task in report["tasks"].values():
        assert task["examples"]["train"] == 16
        scores = task["metrics"]["students"]["small"]
        assert 0 < scores["token_accuracy"] <= 1
        assert scores["perplexity"] > 1


def test_a_folder_opens_with_the_pipeline_and_writes_what_was_scored(folder: Path) -> None:
    from transformers import pipeline

    run, config = folder / "runs/language", load_config(str(folder / "run.yaml"))
    scored = read_predictions(run / "checkpoints/small-distilled")
    for name, task in config.tasks.items():
        write = pipeline("text-generation", str(run / "students/small" / name))
        sources = load_task(name, task).splits["test"].inputs["source"]
        system = [{"role": "system", "content": "the"}]
        for source, text in zip(sources, scored[name][:, 0].tolist(), strict=True):
            asked = source if name == "plain" else [*system, *json.loads(source)]
            assert write(asked, return_full_text=False)[0]["generated_text"] == text
