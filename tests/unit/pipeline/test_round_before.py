"""The students of the round before: where they are, and what they are asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.generation import GenerationConfig
from pipeline.config.load import load_config, parse_config
from pipeline.config.rounds import SamplingConfig
from pipeline.config.schema import RunConfig
from pipeline.errors import ConfigError
from pipeline.models import open_tokenizer
from pipeline.prepare import prepare
from pipeline.round_before import (
    fingerprints_before,
    folders_before,
    own_specs,
    sampled_task,
    students_before,
)
from pipeline.tasks.writing import writing_head
from tests.conftest import TinyModel, TinyRun
from tests.tiny_speech import speech_task
from tests.tiny_writers import SOURCES, TARGETS, writer


@pytest.fixture
def config(tmp_path: Path, tiny_run: TinyRun, tiny_model: TinyModel) -> dict[str, Any]:
    """A later round of a student that writes and one of labels, after a run whose students are there."""
    lines = [json.dumps({"source": a, "target": b}) for a, b in zip(SOURCES, TARGETS, strict=True)]
    files = {}
    for split, some in (("train", lines[:3]), ("validation", lines[3:4]), ("test", lines[4:])):
        files[split] = str(tmp_path / f"{split}.jsonl")
        Path(files[split]).write_text("\n".join(some))
    config = tiny_run()
    config["tasks"] = {
        "mood": config["tasks"]["mood"],
        "words": {
            "kind": "sequence-to-sequence",
            "generation": {"beams": 2},
            "data": {"path": "json", "data_files": files, "max_length": 24, "target_length": 12},
        },
    }
    model = str(writer("t5", tmp_path / "t5"))
    config["teachers"] = {
        "mood-bert": config["teachers"]["mood-bert"],
        "t5": {"task": "words", "model": model},
    }
    config["students"] = {
        "judge": {"init_from": "mood-bert", "layers": 1, "tasks": ["mood"]},
        "writer": {"init_from": "t5", "layers": 2, "tasks": ["words"]},
    }
    students = tmp_path / "runs" / "tiny-round0" / "students"
    writer("t5", students / "writer" / "words", seed=3)
    bert = tiny_model("bert", ("bad", "good"), layers=1)
    (students / "judge").mkdir(parents=True)
    (students / "judge" / "mood").symlink_to(bert)
    return {**config, "rounds": {"share": 0.25, "after": "tiny-round0"}}


def specs_of(config: dict[str, Any]) -> Any:
    own = parse_config(config)
    inputs = prepare(own)
    folders = folders_before(own)
    specs = own_specs(own, inputs, folders)
    return specs, students_before(own, inputs, folders, specs)


def test_one_that_writes_goes_on_and_one_of_labels_begins_anew(config: dict[str, Any]) -> None:
    specs, before = specs_of(config)
    assert not before["judge"].starts
    assert before["writer"].starts == {"words": specs["writer"]["words"].model}
    assert before["writer"].starts["words"].endswith("tiny-round0/students/writer/words")
    assert {name: dict(one.keys) for name, one in before.items()} == {
        "judge": {"mood": specs["judge"]["mood"].key},
        "writer": {"words": specs["writer"]["words"].key},
    }
    assert {one.share for one in before.values()} == {0.25}


@pytest.mark.parametrize("warm", [True, False])
def test_whether_it_goes_on_may_be_given(config: dict[str, Any], warm: bool) -> None:
    specs, before = specs_of({**config, "rounds": {**config["rounds"], "warm_start": warm}})
    assert {name: set(one.starts) for name, one in before.items()} == {
        "judge": {"mood"} if warm else set(),
        "writer": {"words"} if warm else set(),
    }
    assert set(specs) == {"judge", "writer"}, "and both are asked"


def test_a_mixed_student_starts_from_a_model_that_writes(config: dict[str, Any], tmp_path: Path) -> None:
    config["students"] = {"writer": {"init_from": "t5", "layers": 2, "tasks": ["mood", "words"]}}
    students = tmp_path / "runs" / "tiny-round0" / "students"
    (students / "writer" / "mood").symlink_to(students / "judge" / "mood")
    _, before = specs_of(config)
    assert list(before["writer"].starts) == ["words", "mood"]


def test_texts_are_named_by_weights_and_sampling(config: dict[str, Any]) -> None:
    specs, _ = specs_of(config)
    head = writing_head(specs["writer"]["words"].task)
    assert (head.generation.temperature, head.generation.beams, head.target_length) == (1.0, 1, 12)
    key = specs["writer"]["words"].key
    for sampling, same in (
        ({"temperature": 1.0}, True),
        ({"temperature": 0.7}, False),
        ({"max_new_tokens": 8}, False),
    ):
        again, _ = specs_of({**config, "rounds": {**config["rounds"], "sampling": sampling}})
        assert (again["writer"]["words"].key == key) == same, sampling
        assert again["judge"]["mood"].key == specs["judge"]["mood"].key
    other, _ = specs_of({**config, "rounds": {**config["rounds"], "share": 0.9}})
    assert other["writer"]["words"].key == key, "another share writes nothing"


def test_a_student_of_speech_writes_in_the_language_of_its_task() -> None:
    task = speech_task(language="de", beams=4, candidates=2)
    own = writing_head(sampled_task(task, SamplingConfig(temperature=0.7))).generation
    assert own == GenerationConfig(temperature=0.7, language="de")


def test_a_share_of_none_asks_nobody(config: dict[str, Any]) -> None:
    specs, before = specs_of({**config, "rounds": {**config["rounds"], "share": 0.0}})
    assert specs == {}
    assert before["writer"].starts, "it goes on with its weights"
    assert not before["writer"].keys


def test_another_student_of_the_round_before_is_noticed(config: dict[str, Any], tmp_path: Path) -> None:
    own = parse_config(config)
    first = fingerprints_before(folders_before(own))
    assert set(first) == {"rounds.after.judge.mood", "rounds.after.writer.words"}
    writer("t5", tmp_path / "runs" / "tiny-round0" / "students" / "writer" / "words", seed=4)
    second = fingerprints_before(folders_before(own))
    assert first["rounds.after.writer.words"] != second["rounds.after.writer.words"]


def test_a_round_before_that_is_not_there(config: dict[str, Any]) -> None:
    own = parse_config({**config, "rounds": {"after": "gone"}})
    with pytest.raises(ConfigError, match=r"rounds.after: there is no student in .*gone/students/judge/mood"):
        folders_before(own)
    plain: RunConfig = parse_config({**config, "rounds": None})
    assert folders_before(plain) == {}
    assert folders_before(parse_config({**config, "rounds": {}})) == {}


def test_rounds_of_texts_need_one_vocabulary(config: dict[str, Any], tmp_path: Path) -> None:
    other = writer("t5", tmp_path / "other")
    words = open_tokenizer(other)
    words.add_tokens(["neu"])
    words.save_pretrained(other)
    config["students"]["writer"] = {"model": str(other), "tasks": ["words"]}
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump({**config, "rounds": {}, "loss": {"soft": 0, "hard": 1}})
    )
    with pytest.raises(
        ConfigError, match=r"students.writer: its vocabulary is not that of t5: rounds on words"
    ) as caught:
        prepare(load_config(tmp_path / "run.yaml"))
    assert "Drop rounds" in caught.value.remedy
    prepare(load_config(tmp_path / "run.yaml", ["rounds.share=0"]))
