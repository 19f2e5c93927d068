"""The config: what is refused and how it is said, what is normalised, what is shown, what may change."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.fields import SPLITS
from pipeline.config.load import load_config, parse_config
from pipeline.config.redact import redact
from pipeline.config.resolved import (
    Resolved,
    on_policy_share,
    resolve_config,
    student_loss,
    student_settings,
    student_train,
    task_aggregation,
    transfer_sources,
)
from pipeline.config.schema import RunConfig
from pipeline.config.view import differences, flatten, notes, to_yaml
from pipeline.errors import ConfigError
from pipeline.report.group import seed_notes
from tests.unit.pipeline.facts import facts_of

ROOT = Path(__file__).resolve().parents[4]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
TASK = {"kind": "text-classification", "data": {"path": "csv"}}
RUN: dict[str, Any] = {
    "name": "run",
    "tasks": {"movies": TASK, "tweets": copy.deepcopy(TASK)},
    "teachers": {
        "movies-big": {"task": "movies", "model": "big"},
        "movies-tiny": {"task": "movies", "model": "tiny", "fine_tune": {}},
        "tweets-big": {"task": "tweets", "model": "big"},
    },
    "students": {"half": {"init_from": "movies-big"}, "tiny": {"model": "tiny"}},
}


def changed(values: Mapping[str, Any]) -> dict[str, Any]:
    """`RUN` with other values at some dotted paths."""
    run = copy.deepcopy(RUN)
    for path, value in values.items():
        *sections, leaf = path.split(".")
        place = run
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = value
    return run


def resolved(config: RunConfig) -> Resolved:
    return resolve_config(config, facts_of(config))


def written(folder: Path, run: object) -> Path:
    file = folder / "run.yaml"
    file.write_text(run if isinstance(run, str) else yaml.safe_dump(run), encoding="utf-8")
    return file


def refusal(run: object) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_config(run)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.cause + caught.value.remedy
    return caught.value


# ---------------------------------------------------------------- unknown keys


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("sead", "seed"),
        ("los", "loss"),
        ("loss.temprature", "temperature"),
        ("train.epoch", "epochs"),
        ("train.early_stopping.patienc", "patience"),
        ("tasks.movies.data.colums", "columns"),
        ("tasks.movies.agregation", "aggregation"),
        ("tasks.movies.problm", "problem"),
        ("tasks.movies.data.unlabeled", "unlabelled"),
        ("teachers.movies-tiny.fine_tune.learning_rat", "learning_rate"),
        ("teachers.movies-big.serving.replica", "replicas"),
        ("students.half.layer", "layers"),
        ("students.half.train.epoch", "epochs"),  # an overlay: laid over `train` and checked as one
        ("students.half.train.early_stopping.patienc", "patience"),
        ("students.tiny.loss.temprature", "temperature"),
        ("tasks.movies.aggregation.strategi", "strategy"),
    ],
)
def test_unknown_key_is_named_with_the_nearest(tmp_path: Path, path: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, RUN), [f"{path}=1"])
    assert caught.value.cause == f"{path}: unknown key"
    assert caught.value.remedy == f"Did you mean {near!r}?"


def test_unknown_key_like_none_lists_those_there_are() -> None:
    error = refusal(changed({"tracking.zzz": 1}))
    assert error.cause == "tracking.zzz: unknown key"
    assert error.remedy == "Known keys here: enabled, uri, experiment."


def test_missing_key_is_named() -> None:
    assert refusal({"name": "run"}).cause == "tasks: missing"
    assert (
        refusal(changed({"tasks": {"movies": {"kind": "text-classification"}}})).cause
        == "tasks.movies.data: missing"
    )


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("loss.temperature", 0),
        ("loss.temperature", -1),
        ("loss.temperature", float("nan")),
        ("loss.temperature", float("inf")),
        ("loss.hard", float("nan")),
        ("loss.soft", -0.1),
        ("loss.task_weights.movies", float("nan")),
        ("loss.task_weights.movies", -1),
        ("loss.task_temperatures.movies", 0),
        ("aggregation.teacher_weights.movies-big", float("nan")),
        ("aggregation.teacher_weights.movies-big", -1),
        ("students.tiny.loss.temperature", 0),
        ("students.tiny.loss.hard", float("nan")),
        ("students.tiny.train.learning_rate", -1e-4),
        ("tasks.movies.aggregation.teacher_weights.movies-big", -1),
        ("train.epochs", 0),
        ("train.epochs", 10**30),
        ("students.half.train.epochs", 10_001),
        ("teachers.movies-tiny.fine_tune.epochs", 10_001),
        ("train.max_skipped_steps", 10**9 + 1),
        ("train.epochs", 1.5),
        ("train.epochs", "3"),
        ("train.epochs", True),
        ("train.dropout", 1.5),
        ("train.optimizer", "adam"),
        ("tasks.movies.kind", "text-clasification"),
        ("tasks.movies.problem", "multilabel"),
        ("tasks.movies.data.unlabelled", {"path": 5}),
        ("teachers.movies-big.max_length", 2),
        ("teachers.movies-big.labels", ["bad"]),
        ("teachers.movies-big.preflight", "ignore"),
        ("students.tiny.max_length", {"movies": 2}),
        ("tasks.movies.data.holdout", 0.5),
        ("tasks.movies.data.max_length", 2),
        ("tasks.movies.data.limit", {"train": 0}),
        ("tasks.movies.data.limit", {"dev": 5}),
        ("tasks.movies.data.data_files.train", 5),
        ("students.half.layers", "three"),
        ("students.half.layers", 0),
        ("name", "a/b"),
        ("name", "../up"),
        ("name", ".hidden"),
        ("name", ""),
        ("name", "x" * 65),
        ("baselines", ["unsupervised"]),
        ("seeds", 3),
        ("seeds", [0, 0.5]),
        ("seeds", [0, -1]),
    ],
)
def test_bad_value_is_refused_with_its_path(path: str, value: Any) -> None:
    error = refusal(changed({path: value}))
    given = [*path.split("."), *(value if isinstance(value, dict) else ())]
    shown = error.cause.split(":")[0].split(".")
    assert shown[: len(given)] in (given, path.split(".")), error.cause


@pytest.mark.parametrize("section", ["tasks", "teachers", "students"])
def test_names_are_plain(section: str) -> None:
    (entry,) = list(RUN[section].values())[:1]
    error = refusal({**RUN, section: {**RUN[section], "not a name": entry}})
    assert error.cause.startswith(f"{section}.not a name: ")


@pytest.mark.parametrize("section", ["tasks", "teachers", "students"])
def test_at_least_one_of_each(section: str) -> None:
    assert refusal({**RUN, section: {}}).cause.startswith(f"{section}: ")


def test_values_are_not_converted_in_silence() -> None:
    assert "train.workers" in refusal(changed({"train.workers": "2"})).cause
    assert "tasks.movies.data.labels.0" in refusal(changed({"tasks.movies.data.labels": [0, 1]})).cause


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_config(RUN).seed = 1


# ---------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\nname: b\n", "duplicate key name"),
        ("name: a\nloss:\n  hard: 1\n  hard: 2\n", "duplicate key hard"),
        ("tasks:\n  movies: {}\n  tweets: {}\n  movies: {}\n", "duplicate key movies"),
        ("name: [1\n", "line 1"),
        ("loss: {hard: '${nobody}'}\n", "loss.hard: Interpolation key 'nobody' not found\n"),
        ("name: ???\n", "Missing mandatory value: name"),
        ("- name\n", "not a mapping"),
        ("5\n", "not a mapping"),
    ],
)
def test_broken_yaml_is_refused_with_the_file(tmp_path: Path, text: str, said: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(file)
    assert caught.value.cause.startswith(f"{file}: ")
    assert "\n" not in caught.value.cause


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("name: ${nobody}\n", "Write ${key.path} with the whole path"),
        ("name: ${oc.nobody:1}\n", "Write ${key.path} with the whole path"),
        ("name: ${\n", "Write ${key.path} with the whole path"),
        ("name: ???\n", "Give the key a value"),
        ("name: a\nname: b\n", "Every key may stand once"),
        ("name: [1\n", "Correct the YAML at that line"),
        ("- name\n", "Write the config as `key: value` lines"),
    ],
)
def test_the_remedy_fits_the_cause(tmp_path: Path, text: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, text))
    assert caught.value.remedy.startswith(remedy)


@pytest.mark.parametrize(
    "text", ["name: " + "[" * 3000 + "]" * 3000, "name: " + "{a: " * 3000 + "1" + "}" * 3000]
)
def test_yaml_that_is_too_deep_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="nested too deep"):
        load_config(written(tmp_path, text))


def test_an_empty_file_lacks_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name: missing"):
        load_config(written(tmp_path, ""))


def test_a_file_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(b"name: run\n# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"run\.yaml:2: not UTF-8"):
        load_config(file)


@pytest.mark.parametrize("name", ["absent.yaml", "."])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / name)


def test_yaml_makes_no_python_objects(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        load_config(written(tmp_path, "name: !!python/object/apply:os.getcwd []\n"))


def test_interpolation_and_merge_keys(tmp_path: Path) -> None:
    text = yaml.safe_dump({key: value for key, value in RUN.items() if key != "teachers"}) + (
        "seed: 7\n"
        "teachers:\n"
        "  movies-big: &big {task: movies, model: big, fine_tune: {seed: '${seed}'}}\n"
        "  tweets-big: {<<: *big, task: tweets}\n"
    )
    config = load_config(written(tmp_path, text))
    tuned = config.teachers["tweets-big"]
    assert (tuned.task, tuned.model) == ("tweets", "big")
    assert tuned.fine_tune is not None
    assert tuned.fine_tune.seed == 7


# ---------------------------------------------------------------- overrides


def test_overrides_are_laid_over_the_file(tmp_path: Path) -> None:
    overrides = [
        "name=other",
        "train.epochs=9",
        "train.epochs=2",
        "train.learning_rate=3e-4",
        "train.early_stopping={patience: 4}",
        "students.half.layers=[0,2]",
        "students.tiny.loss.soft=0.5",
        "tasks.movies.data.limit.train=10",
        "tracking.uri=null",
    ]
    config = load_config(written(tmp_path, RUN), overrides)
    assert config.name == "other"
    assert config.train.epochs == 2
    assert config.train.learning_rate == 3e-4
    assert config.train.early_stopping is not None
    assert config.train.early_stopping.patience == 4
    assert config.students["half"].layers == (0, 2)
    assert student_loss(config, "tiny")[0].soft == 0.5
    assert student_loss(config, "half")[0].soft is None
    assert config.tasks["movies"].data.limit == {"train": 10}
    assert config.tracking.uri is None


@pytest.mark.parametrize("override", ["train.epochs", "=5", "a b=5", "--debug", ""])
def test_what_is_no_override_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"is not key\.path=value") as caught:
        load_config(written(tmp_path, RUN), [override])
    assert "train.epochs=1" in caught.value.remedy


@pytest.mark.parametrize(
    "override",
    ["train.epochs=[", "train=5", "train.batch_size=", "train..epochs=1", "tasks.movies=null", "seed=${x}"],
)
def test_broken_override_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError):
        load_config(written(tmp_path, RUN), [override])


# ---------------------------------------------------------------- references


@pytest.mark.parametrize(
    ("path", "value", "cause", "remedy"),
    [
        (
            "teachers.movies-tiny.task",
            "movie",
            "teachers.movies-tiny.task: there is no 'movie'",
            "Did you mean 'movies'?",
        ),
        (
            "students.half.init_from",
            "movie-big",
            "students.half.init_from: there is no 'movie-big'",
            "Did you mean 'movies-big'?",
        ),
        (
            "aggregation.teacher_weights.qqq",
            1,
            "aggregation.teacher_weights.qqq: there is no 'qqq'",
            "Known: movies-big, movies-tiny, tweets-big.",
        ),
        (
            "tasks.movies.aggregation.teacher_weights.qqq",
            1,
            "tasks.movies.aggregation.teacher_weights.qqq: there is no 'qqq'",
            "Known: movies-big, movies-tiny, tweets-big.",
        ),
        (
            "tasks.tweets.aggregation.teacher_weights.movies-tiny",
            1,
            "tasks.tweets.aggregation.teacher_weights.movies-tiny: there is no 'movies-tiny'",
            "Known: tweets-big.",
        ),
        ("loss.task_weights.qqq", 1, "loss.task_weights.qqq: there is no 'qqq'", "Known: movies, tweets."),
        (
            "loss.task_temperatures.tweet",
            1,
            "loss.task_temperatures.tweet: there is no 'tweet'",
            "Did you mean 'tweets'?",
        ),
        (
            "students.tiny.max_length.movie",
            32,
            "students.tiny.max_length.movie: there is no 'movie'",
            "Did you mean 'movies'?",
        ),
        (
            "students.tiny.tasks",
            ["movie"],
            "students.tiny.tasks: there is no 'movie'",
            "Did you mean 'movies'?",
        ),
        (
            "students.tiny.loss.task_weights.tweet",
            1,
            "students.tiny.loss.task_weights.tweet: there is no 'tweet'",
            "Did you mean 'tweets'?",
        ),
    ],
)
def test_names_must_exist(path: str, value: Any, cause: str, remedy: str) -> None:
    error = refusal(changed({path: value}))
    assert (error.cause, error.remedy) == (cause, remedy)


@pytest.mark.parametrize("key", ["max_length", "loss.task_weights", "loss.task_temperatures"])
def test_a_student_of_some_tasks_says_nothing_of_others(key: str) -> None:
    own = {"students.tiny.tasks": ["movies"]}
    parse_config(changed({**own, f"students.tiny.{key}": {"movies": 8}}))
    error = refusal(changed({**own, f"students.tiny.{key}": {"tweets": 8}}))
    assert error.cause == f"students.tiny.{key}.tweets: there is no 'tweets'"
    assert "`tasks` names one twice" in refusal(changed({"students.tiny.tasks": ["movies", "movies"]})).cause


# ---------------------------------------------------------------- what a kind rules out


@pytest.mark.parametrize("kind", ["token-classification", "question-answering"])
@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_only_text_classification_has_several_problems(kind: str, problem: str) -> None:
    error = refusal(changed({"tasks.movies.kind": kind, "tasks.movies.problem": problem}))
    assert error.cause == f"tasks.movies.problem: {kind} has no {problem}"
    assert error.remedy == "It has single_label."
    parse_config(changed({"tasks.movies.kind": kind}))


STRATEGIES = ("mean", "log_mean", "confidence", "entropy", "best")


@pytest.mark.parametrize("where", ["aggregation", "tasks.movies.aggregation"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_numbers_have_no_strategies_of_probabilities(where: str, strategy: str) -> None:
    run = changed({"tasks.movies.problem": "regression", f"{where}.strategy": strategy})
    if strategy in ("mean", "confidence", "best"):
        parse_config(run)
        return
    error = refusal(run)
    assert error.cause.startswith(f"tasks.movies: strategy {strategy} is made for probabilities")
    assert error.remedy == "Set tasks.movies.aggregation.strategy to mean, confidence or best."


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_unlabelled_examples_have_no_strategies_that_need_labels(problem: str, strategy: str) -> None:
    if problem == "regression" and strategy in ("log_mean", "entropy"):
        return  # never
    run = changed(
        {
            "tasks.movies.problem": problem,
            "tasks.movies.data.unlabelled": {"path": "csv", "data_files": "more.csv"},
            "tasks.movies.aggregation.strategy": strategy,
        }
    )
    if strategy not in ("confidence", "best"):
        parse_config(run)
        return
    error = refusal(run)
    assert error.cause == f"tasks.movies: strategy {strategy} needs labels, data.unlabelled has none"
    others = "mean" if problem == "regression" else "mean, log_mean or entropy"
    assert error.remedy == f"Set tasks.movies.aggregation.strategy to {others}."


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_texts_of_other_tasks_have_no_strategies_that_need_labels(strategy: str) -> None:
    run = changed({"tasks.movies.transfer": "all", "tasks.movies.aggregation.strategy": strategy})
    if strategy not in ("confidence", "best"):
        parse_config(run)
        return
    error = refusal(run)
    assert error.cause == f"tasks.movies: strategy {strategy} needs labels, transfer has none"
    assert error.remedy == "Set tasks.movies.aggregation.strategy to mean, log_mean or entropy."


# ---------------------------------------------------------------- texts of other tasks


@pytest.mark.parametrize(
    ("given", "tasks", "limit"),
    [
        ("all", "all", None),
        (["tweets"], ("tweets",), None),
        ({"limit": 5}, "all", 5),
        ({"tasks": "all", "limit": 5}, "all", 5),
        ({"tasks": ["tweets"]}, ("tweets",), None),
    ],
)
def test_transfer_may_be_written_short(tmp_path: Path, given: Any, tasks: object, limit: int | None) -> None:
    config = parse_config(changed({"tasks.movies.transfer": given}))
    transfer = config.tasks["movies"].transfer
    assert transfer is not None
    assert (transfer.tasks, transfer.limit) == (tasks, limit)
    assert load_config(written(tmp_path, yaml.safe_load(to_yaml(config)))) == config
    assert parse_config(RUN).tasks["movies"].transfer is None


def test_transfer_by_override(tmp_path: Path) -> None:
    file = written(tmp_path, RUN)
    for override, tasks in (("=all", "all"), ("=[tweets]", ("tweets",)), (".limit=7", "all")):
        transfer = load_config(file, [f"tasks.movies.transfer{override}"]).tasks["movies"].transfer
        assert transfer is not None
        assert transfer.tasks == tasks


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        (["tweet"], "tasks.movies.transfer: there is no 'tweet'\nDid you mean 'tweets'?"),
        (
            ["movies"],
            "tasks.movies.transfer: movies has its own texts already\nLeave movies out of the list.",
        ),
        ([], "tasks.movies.transfer.tasks: Tuple should have at least 1 item"),
        ("tweets", "tasks.movies.transfer: give `all`, a list of tasks, or a section (given: 'tweets')"),
        (5, "tasks.movies.transfer: give `all`, a list of tasks, or a section (given: 5)"),
        ({"limit": 0}, "tasks.movies.transfer.limit: Input should be greater than or equal to 1"),
        ({"task": ["tweets"]}, "tasks.movies.transfer.task: unknown key\nDid you mean 'tasks'?"),
    ],
)
def test_transfer_from_what_is_no_other_task(given: Any, cause: str) -> None:
    assert str(refusal(changed({"tasks.movies.transfer": given}))).startswith(cause)


@pytest.mark.parametrize(
    "pairs",
    [{"kind": "question-answering"}, {"data.columns": {"text_pair": "more"}}],
    ids=["answers", "pairs"],
)
def test_a_task_of_pairs_takes_no_single_texts(pairs: dict[str, Any]) -> None:
    of_pairs = {f"tasks.movies.{key}": value for key, value in pairs.items()}
    error = refusal(changed({**of_pairs, "tasks.movies.transfer": ["tweets"]}))
    assert error.cause == "tasks.movies.transfer: movies takes pairs of texts, tweets has single ones"
    assert error.remedy == "Leave it out, or write `transfer: all` for all tasks that fit."
    assert transfer_sources(
        parse_config(changed({**of_pairs, "tasks.movies.transfer": "all"})), "movies"
    ) == (
        (),
        ("tweets",),
    )
    other = parse_config(
        changed({**of_pairs, "tasks.tweets.transfer": ["movies"]})
    )  # sentences of both sides
    assert transfer_sources(other, "tweets") == (("movies",), ())
    assert transfer_sources(other, "movies") == ((), ())


# ---------------------------------------------------------------- variants


def test_variants_have_defaults_in_their_order(tmp_path: Path) -> None:
    given = {"dropout": {}, "masked": {"model": "m"}, "synonyms": {"path": "~/wordnet", "variants": 3}}
    config = parse_config(changed({"tasks.movies.augment": given}))
    augment = config.tasks["movies"].augment
    assert augment is not None
    assert augment.methods == {"masked": 2, "synonyms": 3, "dropout": 1}
    assert augment.masked is not None
    assert augment.synonyms is not None
    assert (augment.masked.share, augment.masked.candidates, augment.keep_labels) == (0.4, 15, False)
    assert not augment.synonyms.path.startswith("~")
    assert load_config(written(tmp_path, yaml.safe_load(to_yaml(config)))) == config
    assert parse_config(RUN).tasks["movies"].augment is None


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ({}, "tasks.movies.augment: give one of masked, synonyms, dropout"),
        ({"keep_labels": True}, "tasks.movies.augment: give one of masked, synonyms, dropout"),
        ({"masked": {}}, "tasks.movies.augment.masked.model: "),
        ({"dropout": {"share": 0}}, "tasks.movies.augment.dropout.share: Input should be greater than 0"),
        (
            {"dropout": {"share": 1.5}},
            "tasks.movies.augment.dropout.share: Input should be less than or equal to 1",
        ),
        (
            {"dropout": {"variants": 0}},
            "tasks.movies.augment.dropout.variants: Input should be greater than or equal to 1",
        ),
        ({"dropouts": {}}, "tasks.movies.augment.dropouts: unknown key\nDid you mean 'dropout'?"),
    ],
)
def test_wrong_variants_are_refused(given: Any, cause: str) -> None:
    assert str(refusal(changed({"tasks.movies.augment": given}))).startswith(cause)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kept", [False, True])
def test_variants_without_labels_have_no_strategies_that_need_labels(strategy: str, kept: bool) -> None:
    augment = {"dropout": {}, "keep_labels": kept}
    run = changed({"tasks.movies.augment": augment, "tasks.movies.aggregation.strategy": strategy})
    if kept or strategy not in ("confidence", "best"):
        parse_config(run)
        return
    assert refusal(run).cause == f"tasks.movies: strategy {strategy} needs labels, augment has none"


def test_a_teachers_labels_may_mean_none() -> None:
    run = changed({"teachers.movies-big.labels": {"awful": "bad", "spam": None}})
    assert parse_config(run).teachers["movies-big"].labels == {"awful": "bad", "spam": None}


def test_every_task_has_a_teacher() -> None:
    error = refusal(changed({"tasks.news": TASK}))
    assert error.cause == "tasks.news: no teacher"
    assert error.remedy == "Add a teacher with `task: news`, or drop the task."


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ({}, "give `model` or `init_from`"),
        ({"model": "tiny", "init_from": "movies-big"}, "give `model` or `init_from`"),
        ({"model": "tiny", "layers": 2}, "`layers` needs `init_from`"),
        ({"init_from": "movies-big", "layers": []}, "at least one layer"),
        ({"init_from": "movies-big", "layers": [2, 1]}, "in rising order"),
        ({"init_from": "movies-big", "layers": [1, 1]}, "each once"),
        ({"init_from": "movies-big", "layers": [0, -1]}, "layers"),
    ],
)
def test_where_a_student_starts(student: dict[str, Any], said: str) -> None:
    error = refusal(changed({"students": {"s": student}}))
    assert error.cause.startswith("students.s")
    assert said in error.cause


@pytest.mark.parametrize("key", ["workers", "cpus_per_worker", "gpus_per_worker", "max_failures"])
def test_students_share_one_worker_group(key: str) -> None:
    error = refusal(changed({f"students.tiny.train.{key}": 2}))
    assert error.cause == f"students.tiny.train.{key}: one worker group trains all students"
    assert error.remedy == f"Set train.{key}."


def test_a_student_is_sharded_over_several_workers_without_frozen_parts() -> None:
    fsdp: dict[str, Any] = {"train.strategy": "fsdp", "train.workers": 2}
    assert parse_config(changed(fsdp)).train.strategy == "fsdp"
    assert "there is one" in refusal(changed({"train.strategy": "fsdp"})).cause
    stages = [{"unfreeze": "gradual", "epochs": 2}]
    assert "stage 0 has unfreeze" in refusal(changed({**fsdp, "stages": stages})).cause
    adapters = {**fsdp, "students.tiny.train.lora": {"rank": 4}}
    assert "students.tiny: its train has lora" in refusal(changed(adapters)).cause
    error = refusal(changed({"students.tiny.train.strategy": "fsdp"}))
    assert error.cause == "students.tiny.train.strategy: one worker group trains all students"


# ---------------------------------------------------------------- weights


def test_weights_are_normalised_and_that_is_said() -> None:
    config = parse_config(
        changed(
            {
                "aggregation": {"teacher_weights": {"movies-big": 3.0}},
                "loss": {"hard": 1.0, "soft": 3.0, "task_weights": {"movies": 3.0}},
            }
        )
    )
    assert task_aggregation(config, "movies").weights == {"movies-big": 0.75, "movies-tiny": 0.25}
    assert task_aggregation(config, "tweets").weights == {"tweets-big": 1.0}
    loss, _ = student_loss(config, "half")
    assert (loss.hard, loss.soft) == (0.25, 0.75)
    assert loss.task_weights == {"movies": 1.5, "tweets": 0.5}
    assert notes(resolved(config)) == [
        "teacher weights of movies normalised to sum to 1: movies-big 0.75, movies-tiny 0.25",
        "loss weights of half normalised to sum to 1: hard 0.25, soft 0.75",
        "task weights of half normalised to a mean of 1: movies 1.5, tweets 0.5",
        "loss weights of tiny normalised to sum to 1: hard 0.25, soft 0.75",
        "task weights of tiny normalised to a mean of 1: movies 1.5, tweets 0.5",
    ]


def test_a_weight_of_one_beside_another_of_one_is_a_half_and_that_is_said() -> None:
    config = parse_config(changed({"aggregation.teacher_weights": {"movies-big": 1.0}}))
    assert task_aggregation(config, "movies").weights == {"movies-big": 0.5, "movies-tiny": 0.5}
    assert notes(resolved(config)) == [
        "teacher weights of movies normalised to sum to 1: movies-big 0.5, movies-tiny 0.5"
    ]


@pytest.mark.parametrize("share", [0.25, 0.7])
def test_weights_that_sum_to_one_are_left_alone(share: float) -> None:
    weights = {"movies-big": share, "movies-tiny": 1 - share, "tweets-big": 1.0}
    config = parse_config(
        changed({"aggregation.teacher_weights": weights, "loss": {"hard": share, "soft": 1 - share}})
    )
    assert notes(resolved(config)) == []
    assert task_aggregation(config, "movies").weights["movies-big"] == pytest.approx(share)


def test_nothing_is_noted_of_defaults() -> None:
    assert notes(resolved(parse_config(RUN))) == []


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        (
            {"aggregation.teacher_weights": {"movies-big": 0, "movies-tiny": 0}},
            "aggregation.teacher_weights: every teacher of movies has weight 0",
        ),
        (
            {"tasks.tweets.aggregation.teacher_weights": {"tweets-big": 0}},
            "aggregation.teacher_weights: every teacher of tweets has weight 0",
        ),
        ({"loss": {"hard": 0, "soft": 0}}, "loss: hard and soft are both 0 (student half)"),
        ({"students.tiny.loss": {"hard": 0, "soft": 0}}, "loss: hard and soft are both 0 (student tiny)"),
        (
            {"loss.task_weights": {"movies": 0, "tweets": 0}},
            "loss.task_weights: every task has weight 0 (student half)",
        ),
    ],
)
def test_weights_that_are_all_zero_are_refused(values: dict[str, Any], cause: str) -> None:
    error = refusal(changed(values))
    assert (error.cause, error.remedy) == (cause, "Give at least one of them a weight above 0.")


def test_one_loss_alone_is_fine() -> None:
    loss, _ = student_loss(parse_config(changed({"loss": {"hard": 0, "soft": 5}})), "half")
    assert (loss.hard, loss.soft) == (0.0, 1.0)


# ---------------------------------------------------------------- searches

SEARCH = {"space": {"loss.temperature": {"uniform": [1, 8]}}}


@pytest.mark.parametrize(
    ("distribution", "said"),
    [
        ({}, "give one of choice, uniform"),
        ({"uniform": [1, 8], "choice": [1, 2]}, "give one of choice, uniform"),
        ({"normal": [0, 1]}, "normal: unknown key"),
        ({"choice": []}, "choice"),
        ({"uniform": [8, 1]}, "low must be below high"),
        ({"randint": [3, 3]}, "low must be below high"),
        ({"randint": [0.5, 3]}, "randint"),
        ({"uniform": [1]}, "uniform"),
        ({"loguniform": [0, 1]}, "a logarithmic scale starts above 0"),
        ({"lograndint": [0, 9]}, "a logarithmic scale starts above 0"),
        ({"quniform": [0, 1, 0]}, "the step must be above 0"),
        ({"quniform": [0, 1, -0.5]}, "the step must be above 0"),
        ({"quniform": [1, 8, 2]}, "both ends multiples of it"),
        ({"quniform": [0, 1, 2]}, "both ends multiples of it"),
    ],
)
def test_a_distribution_that_cannot_be_drawn_from_is_refused(distribution: dict[str, Any], said: str) -> None:
    error = refusal({**RUN, "tune": {"space": {"loss.temperature": distribution}}})
    assert error.cause.startswith("tune.space.loss.temperature")
    assert said in error.cause + error.remedy


@pytest.mark.parametrize(
    "distribution",
    [
        {"quniform": [0.02, 0.03, 0.01]},  # 0.03 − 0.02 is a little less than 0.01
        {"quniform": [0.1, 0.7, 0.1]},
        {"choice": [None, 0.1, [0, 2], "linear"]},
        {"lograndint": [1, 2]},
    ],
)
def test_a_search_is_shown_as_it_was_written(tmp_path: Path, distribution: dict[str, Any]) -> None:
    run = {
        **RUN,
        "tune": {"space": {"loss.temperature": distribution}, "metric": ["macro/score", "movies/nll"]},
    }
    run["tune"]["scheduler"] = "none"
    config = parse_config(run)
    assert config.tune is not None
    assert config.model_dump(mode="json")["tune"]["space"] == {"loss.temperature": distribution}
    assert load_config(written(tmp_path, to_yaml(config))) == config


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"space": {}}, "space"),
        ({"mode": ["max", "min"]}, "2 modes for 1 metrics"),
        ({"metric": ["macro/score", "macro/score"], "scheduler": "none"}, "the same one twice"),
        ({"metric": ["macro/score", "movies/nll"]}, "asha compares trials by one metric"),
        ({"algorithm": "grid"}, "grid needs a choice for every key"),
        ({"scheduler": "pbt"}, "pbt needs algorithm: random"),
        ({"trials": 0}, "trials"),
        ({"reduction_factor": 1}, "reduction_factor"),
        ({"time_budget_s": 0}, "time_budget_s"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(settings: dict[str, Any], said: str) -> None:
    error = refusal({**RUN, "tune": {**SEARCH, **settings}})
    assert error.cause.startswith("tune")
    assert said in error.cause


def test_a_search_changes_no_run(tmp_path: Path) -> None:
    """`tutelage train` goes on with the run folder whatever the search is."""
    searched = parse_config({**RUN, "tune": SEARCH})
    assert differences(parse_config(RUN), searched) == []


# ---------------------------------------------------------------- several seeds


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"seeds": [0, 1, 0]}, "seeds: one stands twice in [0, 1, 0]"),
        ({"seeds": [0, 1], "seed": 3}, "seed and seeds are both given"),
        ({"seeds": [0, 10], "name": "x" * 58}, f"name: {'x' * 58}-seed10 has more than 64 characters"),
    ],
)
def test_seeds_that_cannot_be(values: dict[str, Any], cause: str) -> None:
    assert refusal(changed(values)).cause == cause


TEXTS = {"kind": "sequence-to-sequence", "data": {"path": "json", "target_length": 32}}
WRITING = {"tasks.movies": TEXTS}


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        (
            {"rounds": {}, "tune": {"space": {"loss.hard": {"uniform": [0, 1]}}}},
            "tune and rounds are both given",
        ),
        ({"rounds": {"share": 0}}, "rounds.share: 0 would train the same student again"),
        (
            {**WRITING, "rounds": {"share": 0, "warm_start": False}},
            "rounds.share: 0 would train the same student again",
        ),
        ({"rounds": {}, "name": "x" * 58}, f"name: {'x' * 58}-round3 has more than 64 characters"),
        ({"rounds": {}, "seeds": [1], "name": "x" * 55}, f"{'x' * 55}-round3-seed1 has more than 64"),
        ({**WRITING, "rounds": {"sampling": {"max_new_tokens": 33}}}, "a text of movies is cut to 32 tokens"),
        ({"rounds": {"sampling": {"beams": 2}}}, "rounds.sampling.beams"),
    ],
)
def test_rounds_that_cannot_be(values: dict[str, Any], cause: str) -> None:
    error = refusal(changed(values))
    assert cause in f"{error.cause} {error.remedy}"


def test_only_a_later_round_of_texts_learns_on_policy() -> None:
    config = parse_config(changed({**WRITING, "rounds": {"share": 0.25}}))
    assert config.in_rounds
    assert on_policy_share(config, "movies") == 0
    own = {**WRITING, "loss": {"hard": 1, "soft": 0}, "rounds": {"share": 0.25, "after": "some-round0"}}
    later = parse_config(changed(own))
    assert not later.in_rounds
    assert on_policy_share(later, "movies") == 0.25
    settings = student_settings(later, next(iter(later.students)), facts_of(later))
    assert settings.soft == {"movies"}, "its own texts need the teachers' distributions"
    labels = parse_config({**RUN, "rounds": {"after": "some-round0"}})
    assert on_policy_share(labels, "movies") == 0


def test_seeds_from_the_command_line(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, RUN), ["seeds=[3,1,2]"])
    assert config.seeds == (3, 1, 2)
    assert config.name_of_seed(3) == "run-seed3"
    assert load_config(written(tmp_path, to_yaml(config))) == config
    assert load_config(written(tmp_path, RUN), ["name=" + "x" * 58, "seeds=[0,1]"]).seeds == (0, 1)


@pytest.mark.parametrize(("count", "warned"), [(1, True), (5, True), (6, False), (8, False)])
def test_too_few_seeds_are_said(count: int, warned: bool) -> None:
    (note,) = seed_notes(parse_config(changed({"seeds": list(range(count))})))
    assert "run-seed0" in note
    assert ("no test can give p below" in note) == warned


def test_a_group_may_have_other_seeds_but_is_no_single_run() -> None:
    alone, two, three = (parse_config(changed({"seeds": seeds})) for seeds in ([], [0, 1], [0, 1, 2]))
    assert differences(two, three) == []
    assert differences(three, two) == []
    assert differences(alone, two) != []
    assert differences(two, alone) != []


# ---------------------------------------------------------------- overlays


def test_overlays_reach_only_their_own(tmp_path: Path) -> None:
    config = parse_config(
        changed(
            {
                "train": {"epochs": 3, "early_stopping": {"patience": 2}},
                "students.tiny.train": {"epochs": 6, "early_stopping": {"patience": 5}},
                "students.half.train": {"early_stopping": None},
                "aggregation": {"strategy": "log_mean", "teacher_weights": {"movies-big": 2.0}},
                "tasks.movies.aggregation": {
                    "strategy": "confidence",
                    "teacher_weights": {"movies-tiny": 4.0},
                },
            }
        )
    )
    tiny, half = student_train(config, "tiny"), student_train(config, "half")
    assert (tiny.epochs, half.epochs) == (6, 3)
    assert tiny.early_stopping is not None
    assert tiny.early_stopping.patience == 5
    assert half.early_stopping is None
    movies, tweets = task_aggregation(config, "movies"), task_aggregation(config, "tweets")
    assert (movies.strategy, tweets.strategy) == ("confidence", "log_mean")
    assert movies.weights == pytest.approx({"movies-big": 1 / 3, "movies-tiny": 2 / 3})
    assert tweets.weights == {"tweets-big": 1.0}


def test_the_order_of_the_file_is_kept() -> None:
    config = parse_config(RUN)
    assert config.teachers_of("movies") == ("movies-big", "movies-tiny")
    assert list(config.students) == ["half", "tiny"]


def test_where_things_are_kept(tmp_path: Path) -> None:
    config = parse_config(changed({"runs_dir": str(tmp_path)}))
    assert config.run_dir == tmp_path / "run"
    assert config.teachers_dir == tmp_path / "_teachers"
    assert config.store_path == str(tmp_path / "_store")
    assert config.tracking_uri == f"sqlite:///{tmp_path}/_mlflow/mlflow.db"
    assert config.experiment == "run"
    elsewhere = parse_config(
        changed({"store": {"path": "s3://b/x"}, "tracking": {"uri": "http://h:1", "experiment": "e"}})
    )
    assert (elsewhere.store_path, elsewhere.tracking_uri, elsewhere.experiment) == (
        "s3://b/x",
        "http://h:1",
        "e",
    )


# ---------------------------------------------------------------- shown and read back


ODD = [
    "1e3",
    "1_000",
    "12e45",
    "nan",
    ".inf",
    "no",
    "y",
    "null",
    "~",
    "None",
    "12:30",
    "0x1f",
    "2024-01-01",
    "<<",
    "=",
]


def test_resolved_yaml_reads_back_as_it_was(tmp_path: Path) -> None:
    run = changed(
        {
            "tasks.movies.data": {
                "path": "csv",
                "data_files": {"train": ["a.csv", "b.csv"]},
                "labels": [*ODD, "é\n", " x", "a: b", "#c", "'", '"', "", "\u2028"],
                "limit": {"train": 5},
                "splits": {"validation": "train[80%:]"},
            },
            "teachers.movies-tiny.revision": "12e45",
            "students.half.layers": [0, 2],
            "students.tiny.train": {"epochs": 6, "learning_rate": 3e-4},
            "store.path": "hf://datasets/somebody/something@main/store",
        }
    )
    config = parse_config(run)
    again = load_config(written(tmp_path, to_yaml(config)))
    assert again == config
    assert differences(config, again) == []
    assert to_yaml(again) == to_yaml(config)


@settings(deadline=None, max_examples=20)
@given(
    st.lists(
        st.text("01eE.+-_:#&*!|>%@`'\"\\ \n\t,[]{}é\u2028nulltrefasy~", max_size=8), min_size=1, max_size=5
    )
)
def test_any_label_reads_back(tmp_path_factory: pytest.TempPathFactory, labels: list[str]) -> None:
    config = parse_config(changed({"tasks.movies.data.labels": labels, "tasks.movies.data.path": "csv"}))
    again = load_config(written(tmp_path_factory.mktemp("labels"), to_yaml(config)))
    assert again.tasks["movies"].data.labels == tuple(labels)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_shipped_examples_are_valid_and_read_back(tmp_path: Path, file: Path) -> None:
    config = load_config(file)
    assert load_config(written(tmp_path, to_yaml(config))) == config


def test_there_are_examples() -> None:
    assert ROOT / "examples" / "quickstart.yaml" in EXAMPLES


def test_flat_view_has_every_default() -> None:
    flat = flatten(parse_config(RUN))
    assert flat["train.weight_decay"] == 0.01
    assert flat["teachers.movies-tiny.fine_tune.epochs"] is None
    assert flat["teachers.movies-big.fine_tune"] is None
    assert flat["students.half.train"] == {}
    assert flat["tasks.movies.data.path"] == "csv"


# ---------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("https://me:hunter2@host/x", "https://***@host/x"),
        ("https://me:hunter2@host:5000", "https://***@host:5000"),
        ("s3://id:hunter2@bucket/path", "s3://***@bucket/path"),
        ("postgresql://me:hunt@er2@host/db", "postgresql://***@host/db"),
        ("https://host/x?version=2&token=hunter2&y=1#z", "https://host/x?version=2&token=***&y=1#z"),
        (
            "s3://bucket/p?access_key=hunter2&secret_key=hunter2",
            "s3://bucket/p?access_key=***&secret_key=***",
        ),
        ("https://host/blob?sv=1&sig=hunter2", "https://host/blob?sv=1&sig=***"),
        ("hf://datasets/me/data@main/a.csv", "hf://datasets/me/data@main/a.csv"),
        ("https://host/?mail=a@b", "https://host/?mail=a@b"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("me@host", "me@host"),
    ],
)
def test_urls_are_shown_without_their_secrets(value: str, shown: str) -> None:
    assert redact("uri", value) == shown
    assert redact("uri", shown) == shown
    assert redact("files", [value, "a.csv"]) == [shown, "a.csv"]


@pytest.mark.parametrize(
    "leaf", ["token", "api_key", "apikey", "key", "hub-key", "secret", "DB_PASSWORD", "hf_token"]
)
def test_secrets_are_known_by_name(leaf: str) -> None:
    assert redact(f"some.section.{leaf}", "hunter2") == "***"
    assert redact(f"some.section.{leaf}", None) is None


@pytest.mark.parametrize("leaf", ["tokens_per_forward", "monkey", "keyboard"])
def test_what_only_looks_like_a_secret_is_shown(leaf: str) -> None:
    assert redact(leaf, "hunter2") == "hunter2"


def test_weights_of_things_with_secretive_names_are_no_secrets(tmp_path: Path) -> None:
    run = changed({"loss.task_weights": {"token": 2.0}})
    run["tasks"]["token"] = TASK
    run["teachers"]["token"] = {"task": "token", "model": "big"}
    config = parse_config(run)
    assert flatten(config)["loss.task_weights.token"] == 2.0
    assert load_config(written(tmp_path, to_yaml(config))) == config


def test_no_view_of_the_config_has_a_secret() -> None:
    url = "https://me:hunter2@host/train.csv?token=hunter2"
    config = parse_config(
        changed(
            {
                "tasks.movies.data": {"path": "csv", "data_files": {"train": [url], "test": url}},
                "store": {"path": "s3://id:hunter2@bucket"},
                "tracking": {"uri": "https://me:hunter2@mlflow"},
            }
        )
    )
    other = parse_config({**json.loads(config.model_dump_json()), "seed": 1})
    for view in (to_yaml(config), str(flatten(config)), str(differences(config, other))):
        assert "hunter2" not in view
    assert differences(config, other) == ["seed: 0 → 1"]


def test_a_misplaced_secret_is_not_printed() -> None:
    assert "hunter2" not in refusal(changed({"tracking": "https://me:hunter2@mlflow"})).cause


# ---------------------------------------------------------------- differences


FREE: dict[str, Any] = {
    "runs_dir": "elsewhere",
    "store": {"path": "s3://bucket/store"},
    "tracking": {"enabled": False, "uri": "http://host", "experiment": "other"},
    "cluster": {"address": "auto", "cpus": 3},
    "train.checkpoint_steps": 7,
    "train.max_failures": 9,
    "train.cpus_per_worker": 2,
    "train.resources_per_worker": {"student": 1},
    "students.tiny.train": {"checkpoint_steps": 7},
    "teachers.movies-tiny.fine_tune.checkpoint_steps": 7,
    "teachers.movies-big.preflight": "warn",
    "teachers.movies-big.serving": {
        "replicas": 2,
        "cpus": 2,
        "gpus": 1,
        "resources": {"teacher": 1},
        "in_flight": 4,
        "timeout_s": 5,
        "restarts": 0,
    },
}
BINDING: dict[str, Any] = {
    "seed": 1,
    "seeds": [0, 1],
    "loss.temperature": 3.0,
    "loss.task_weights": {"movies": 2.0},
    "aggregation.strategy": "best",
    "train.epochs": 9,
    "train.workers": 2,
    "train.early_stopping": {"patience": 1},
    "students.tiny.train": {"epochs": 9},
    "students.half.layers": 2,
    "teachers.movies-tiny.fine_tune": {"epochs": 9},
    "teachers.movies-big.serving.dtype": "bf16",
    "tasks.movies.data.max_length": 64,
    "tasks.movies.data.limit": {"train": 5},
    "tasks.movies.metric": "macro_f1",
    "tasks.movies.problem": "multi_label",
    "tasks.movies.data.unlabelled": {"path": "csv"},
    "tasks.movies.transfer": {"limit": 5},
    "tasks.movies.augment": {"dropout": {}},
    "teachers.movies-big.max_length": 64,
    "teachers.movies-big.labels": {"awful": "bad"},
    "students.tiny.max_length": {"movies": 64},
    "baselines": [],
}


@pytest.mark.parametrize("path", FREE)
def test_where_and_how_may_change(path: str) -> None:
    other = changed({path: FREE[path]})
    assert differences(parse_config(RUN), parse_config(other)) == []
    assert differences(parse_config(other), parse_config(RUN)) == []


@pytest.mark.parametrize("path", BINDING)
def test_what_changes_the_results_is_listed(path: str) -> None:
    before, after = parse_config(RUN), parse_config(changed({path: BINDING[path]}))
    found = differences(before, after)
    assert found
    assert all(line.startswith(path) for line in found), found
    assert len(differences(after, before)) == len(found)


def test_a_difference_is_shown_with_both_values() -> None:
    assert differences(parse_config(RUN), parse_config(changed({"train.warmup": 0.5}))) == [
        "train.warmup: 0.1 → 0.5"
    ]


def test_another_teacher_or_student_is_a_difference() -> None:
    more = changed({"students.third": {"model": "tiny"}})
    assert any(
        line.startswith("students.third.") for line in differences(parse_config(RUN), parse_config(more))
    )


# ---------------------------------------------------------------- lightness


def test_importing_the_config_is_light() -> None:
    heavy = ["torch", "ray", "mlflow", "transformers", "datasets", "numpy", "pandas"]
    script = f"import sys, pipeline.config.schema; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_split_names() -> None:
    assert SPLITS == ("train", "validation", "test")
    assert set(RunConfig.model_fields) >= {"tasks", "teachers", "students"}


def test_a_tilde_is_the_home_folder_wherever_a_path_may_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    config = parse_config(
        changed(
            {
                "runs_dir": "~/runs",
                "store.path": "~/store",
                "teachers.movies-big.model": "~/big",
                "students.tiny.model": "~/tiny",
                "tasks.movies.data.path": "~/movies",
                "tasks.movies.data.data_files": {"train": "~/a.csv", "test": ["~/b.csv", "c.csv"]},
                "tasks.movies.data.unlabelled": {"path": "~/more", "data_files": "~/d.csv"},
            }
        )
    )
    data = config.tasks["movies"].data
    assert data.unlabelled is not None
    assert data.data_files is not None
    assert [
        *(config.runs_dir, config.store.path, config.teachers["movies-big"].model),
        *(config.students["tiny"].model, data.path, data.data_files["train"]),
        *(*data.data_files["test"], data.unlabelled.path, data.unlabelled.data_files),
    ] == [
        *("/home/someone/runs", "/home/someone/store", "/home/someone/big", "/home/someone/tiny"),
        *("/home/someone/movies", "/home/someone/a.csv", "/home/someone/b.csv", "c.csv"),
        *("/home/someone/more", "/home/someone/d.csv"),
    ]
    assert parse_config(changed({"store.path": "s3://b/~/x"})).store_path == "s3://b/~/x"
