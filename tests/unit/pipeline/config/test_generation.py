"""The keys of kinds that write texts, and where they are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.config.generation import GenerationConfig
from pipeline.config.load import parse_config
from pipeline.config.recipe import Facts, ModelFacts, TaskFacts
from pipeline.config.resolved import resolve_config, task_aggregation, transfer_sources
from pipeline.errors import ConfigError

DATA = {"path": "json", "data_files": {"train": "t.jsonl", "test": "t.jsonl"}}


def config(**changes: Any) -> dict[str, Any]:
    return {
        "name": "r",
        "tasks": {"translate": {"kind": "sequence-to-sequence", "data": DATA}},
        "teachers": {
            "a": {"task": "translate", "model": "org/a"},
            "b": {"task": "translate", "model": "org/b"},
        },
        "students": {"s": {"init_from": "a", "layers": {"encoder": 2, "decoder": 1}}},
        **changes,
    }


def task(**changes: Any) -> dict[str, Any]:
    return {"translate": {"kind": "sequence-to-sequence", "data": DATA, **changes}}


FACTS = Facts(
    {"translate": TaskFacts(None, False, 1000, 900, None, writes=True)},
    {"s": ModelFacts(512, by_word=False, rate_factor=13.0)},
    {"a": ModelFacts(512), "b": ModelFacts(512)},
)


def test_a_model_that_writes_has_one_rate() -> None:
    mixed = {**config()["tasks"], "movies": {"kind": "text-classification", "data": DATA}}
    teachers = {**config()["teachers"], "c": {"task": "movies", "model": "org/c"}}
    both = replace(FACTS, tasks={**FACTS.tasks, "movies": TaskFacts(2, False, 1000, 900, 0.5)})
    alone = resolve_config(parse_config(config()), FACTS).students["s"].train
    assert alone.head_learning_rate == alone.learning_rate
    shared = resolve_config(parse_config(config(tasks=mixed, teachers=teachers)), both).students["s"].train
    assert shared.head_learning_rate > shared.learning_rate == alone.learning_rate


def test_texts_are_combined_by_consensus_by_default() -> None:
    assert task_aggregation(parse_config(config()), "translate").strategy == "consensus"
    given = parse_config(config(aggregation={"strategy": "best"}))
    assert task_aggregation(given, "translate").strategy == "best"


def test_a_student_learns_half_of_its_teachers_texts_by_default() -> None:
    student = resolve_config(parse_config(config()), FACTS).students["s"]
    loss = student.loss.tasks["translate"]
    assert (loss.hard, loss.soft, loss.text, loss.temperature) == (1.0, 0.0, 0.5, 1.0)
    assert student.soft == frozenset()
    assert student.train.learning_rate == pytest.approx(9.8e-4), "13 × the rate of an encoder of that width"
    given = parse_config(config(loss={"text": 1.0, "hard": 0.4, "soft": 0.6}))
    student = resolve_config(given, FACTS).students["s"]
    assert student.loss.tasks["translate"].text == 1.0
    assert student.soft == {"translate"}


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"tasks": task(aggregation={"strategy": "entropy"})}, "made for probabilities"),
        ({"tasks": task(generation={"candidates": 3})}, "`candidates` needs as many `beams`"),
        ({"tasks": task(generation={"temperature": 1, "beams": 2})}, "and not both"),
        ({"tasks": task(problem="regression")}, "has no regression"),
        ({"students": {"s": {"init_from": "a", "layers": {"decoder": [2, 1]}}}}, "rising order"),
        (
            {
                "tasks": task(data={**DATA, "unlabelled": {"path": "text"}}),
                "aggregation": {"strategy": "best"},
            },
            "needs labels",
        ),
    ],
)
def test_what_does_not_fit_texts_is_refused(changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        parse_config(config(**changes))


@pytest.mark.parametrize(
    ("own", "teacher", "key"),
    [
        ({"prefix": "x: "}, {}, "tasks.movies.prefix"),
        ({"generation": {"beams": 2}}, {}, "tasks.movies.generation"),
        ({"data": {**DATA, "target_length": 20}}, {}, "tasks.movies.data.target_length"),
        ({}, {"generation": {"beams": 2}}, "teachers.a.generation"),
        ({"aggregation": {"strategy": "consensus"}}, {}, "consensus is made for texts"),
    ],
)
def test_other_kinds_do_not_take_the_keys_of_texts(
    own: dict[str, Any], teacher: dict[str, Any], key: str
) -> None:
    tasks = {"movies": {"kind": "text-classification", "data": DATA, **own}}
    teachers = {"a": {"task": "movies", "model": "org/a", **teacher}}
    with pytest.raises(ConfigError, match=key):
        parse_config(config(tasks=tasks, teachers=teachers, students={"s": {"model": "org/s"}}))


@pytest.mark.parametrize("key", ["text", "label_smoothing"])
def test_a_loss_of_texts_needs_a_task_that_writes(key: str) -> None:
    movies = {"movies": {"kind": "text-classification", "data": DATA}}
    teachers = {"a": {"task": "movies", "model": "org/a"}}
    student = {"model": "org/s"}
    plain: dict[str, Any] = {"tasks": movies, "teachers": teachers}
    with pytest.raises(ConfigError, match=f"loss.{key}: no task of the run writes texts"):
        parse_config(config(**plain, students={"s": student}, loss={key: 0.1}))
    with pytest.raises(ConfigError, match=f"loss.{key}: no task of s writes texts"):
        parse_config(config(**plain, students={"s": {**student, "loss": {key: 0.1}}}))
    parse_config(config(loss={key: 0.1}))


def test_beta_needs_distributions_and_no_draws() -> None:
    parse_config(config(loss={"beta": 0.5, "soft": 0.5, "hard": 0.5}))
    drawn = task(token_targets={"form": "sampled"})
    with pytest.raises(ConfigError, match=r"loss\.beta: tasks\.translate\.token_targets\.form sampled"):
        parse_config(config(tasks=drawn, loss={"beta": 0.5, "soft": 0.5, "hard": 0.5}))
    parse_config(config(tasks=drawn, loss={"beta": 0.5}))
    stars = {"stars": {"kind": "text-classification", "problem": "regression", "data": DATA}}
    numbers = {"tasks": stars, "teachers": {"a": {"task": "stars", "model": "org/a"}}}
    with pytest.raises(ConfigError, match=r"loss\.beta: the tasks of s are of numbers"):
        parse_config(config(**numbers, students={"s": {"model": "org/s", "loss": {"beta": 0.5}}}))
    parse_config(config(**numbers, students={"s": {"model": "org/s"}}, loss={"beta": 0.5}))


# ---------------------------------------------------------------- recordings


def speech(**changes: Any) -> dict[str, Any]:
    return {"translate": {"kind": "speech-recognition", "data": DATA, **changes}}


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"tasks": speech(prefix="x")}, "prefix: a speech-recognition reads recordings"),
        ({"tasks": speech(data={**DATA, "max_length": 64})}, "max_length: a speech-recognition reads"),
        ({"tasks": speech(augment={"dropout": {}})}, "augment: a speech-recognition reads recordings"),
        (
            {"tasks": speech(), "students": {"s": {"init_from": "a", "max_length": {"translate": 64}}}},
            "students.s.max_length.translate: a speech-recognition reads",
        ),
        ({"tasks": task(generation={"language": "en"})}, "generation.language: a sequence-to-sequence hears"),
    ],
)
def test_keys_of_texts_and_of_recordings_are_told_apart(changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        parse_config(config(**changes))


def test_recordings_and_texts_do_not_fit_each_other() -> None:
    texts = {"kind": "text-classification", "data": DATA}
    teachers = {**config()["teachers"], "c": {"task": "movies", "model": "org/c"}}
    students = {"s": {"init_from": "a", "tasks": ["translate"]}, "t": {"init_from": "c", "tasks": ["movies"]}}
    given = {"teachers": teachers, "students": students}
    tasks = {**speech(transfer=["movies"]), "movies": texts}
    with pytest.raises(ConfigError, match="translate and movies are recordings and texts"):
        parse_config(config(tasks=tasks, **given))
    tasks = {**speech(), "movies": {**texts, "transfer": "all"}}
    assert transfer_sources(parse_config(config(tasks=tasks, **given)), "movies") == ((), ("translate",))


def test_the_limit_of_word_errors_is_of_speech_alone() -> None:
    assert task_aggregation(parse_config(config()), "translate").max_word_error is None
    assert task_aggregation(parse_config(config(tasks=speech())), "translate").max_word_error == 0.3
    given = speech(aggregation={"max_word_error": None})
    assert task_aggregation(parse_config(config(tasks=given)), "translate").max_word_error is None


def test_a_language_is_part_of_stored_texts_names_only_where_there_is_one() -> None:
    assert "language" not in GenerationConfig().settings
    assert GenerationConfig(language="en").settings["language"] == "en"
