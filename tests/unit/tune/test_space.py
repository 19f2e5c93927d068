"""What may be searched and what is refused, before Ray starts; values → config and back; the points of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.recipe import ModelFacts
from pipeline.config.resolved import student_settings, student_train
from pipeline.config.schema import RunConfig
from pipeline.config.search import Distribution
from pipeline.errors import ConfigError
from tests.unit.pipeline.facts import facts_of
from tests.unit.tune.studies import SPACE, search_of, with_facts
from tune import space as space_of_values
from tune.space import (
    check_derived,
    checked,
    distributions,
    domains,
    keys_of,
    modes,
    most_epochs,
    nearest,
    points,
    student_of,
    values_of,
    with_values,
)

UNIFORM = {"uniform": [1, 8]}
GIVEN: dict[str, Any] = {"trials": 8, "algorithm": "random"}
POPULATION: dict[str, Any] = {"scheduler": "pbt", "algorithm": "random", "trials": 4, "concurrency": 4}


def refusal(
    space: Mapping[str, Any] = SPACE, run: Mapping[str, Any] | None = None, **tune: Any
) -> ConfigError:
    config = search_of(space, run, **tune)
    with pytest.raises(ConfigError) as caught:
        checked(config)
    assert caught.value.exit_code == 2
    assert caught.value.remedy
    assert "\n" not in caught.value.cause + caught.value.remedy
    return caught.value


def points_of(config: RunConfig) -> list[dict[str, Any]]:
    all_points = points(*with_facts(config))
    assert all_points is not None
    return all_points


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("path", "values", "cause", "remedy"),
    [
        ("loss.temprature", UNIFORM, "loss.temprature: unknown key", "Did you mean 'temperature'?"),
        ("los.temperature", UNIFORM, "los: unknown key", "Did you mean 'loss'?"),
        ("students.half.layer", {"choice": [1]}, "students.half.layer: unknown key", "'layers'"),
        ("students.half.train.epoch", {"choice": [1]}, "students.half.train.epoch", "'epochs'"),
        ("loss.task_weights.movie", UNIFORM, "there is no 'movie'", "'movies'"),
        ("aggregation.teacher_weights.movies-bigg", UNIFORM, "there is no 'movies-bigg'", "'movies-big'"),
        ("seed.first", UNIFORM, "seed has no keys of its own", "path of a key"),
        ("baselines.0", {"choice": ["supervised"]}, "baselines.0: 0 is a whole section", "path of a key"),
        ("stages.0.epochs", {"choice": [1]}, "0 has no keys of its own", "path of a key"),
        ("", UNIFORM, "unknown key", "Known keys"),
        ("teachers.movies-big.model", {"choice": ["a"]}, "other teachers or other soft targets", "by hand"),
        ("teachers.movies-tiny.fine_tune.epochs", {"choice": [1]}, "other soft targets", "by hand"),
        ("teachers.movies-big.serving.replicas", {"choice": [1]}, "other soft targets", "by hand"),
        ("teachers", {"choice": [{}]}, "other teachers or other soft targets", "by hand"),
        ("tasks.movies.augment.dropout.share", {"choice": [0.1]}, "it would make other variants", "by hand"),
        ("tasks.movies.data.limit.train", {"choice": [1]}, "it would change the examples", "by hand"),
        ("tasks.movies.data", {"choice": [{}]}, "it would change the examples", "by hand"),
        (
            "tasks.movies.data.max_length",
            {"choice": [16]},
            "it would change the examples",
            "Search students.half.max_length.movies",
        ),
        (
            "teachers.movies-big.max_length",
            {"choice": [16]},
            "other soft targets",
            "Search students.half.max_length.<task>",
        ),
        ("tasks.movies.kind", {"choice": ["token-classification"]}, "the task itself", "by hand"),
        ("tasks.movies.metric", {"choice": ["macro_f1"]}, "the task itself", "by hand"),
        ("tasks", {"choice": [{}]}, "the task itself", "by hand"),
        ("name", {"choice": ["a"]}, "names the study", "by hand"),
        ("seeds", {"choice": [[1]]}, "a trial has one seed", "by hand"),
        ("baselines", {"choice": [[]]}, "trials have none", "by hand"),
        ("students.tiny.loss.temperature", UNIFORM, "the student searched is half", "tune.student"),
        ("students.halfway.loss.temperature", UNIFORM, "the student searched is half", "tune.student"),
        ("students", {"choice": [{}]}, "the student searched is half", "a key of students.half"),
        ("train.workers", {"choice": [1, 2]}, "all trials get the same resources", "Drop the key."),
        ("train.gpus_per_worker", {"choice": [0, 1]}, "the same resources", "Drop the key."),
        ("train", {"choice": [{"workers": 2}]}, "the same resources", "one by one"),
        ("students.half.train.workers", {"choice": [1]}, "one worker group", "Set train.workers."),
        ("train.cpus_per_worker", {"choice": [1]}, "it changes no result", "Drop the key."),
        ("train.checkpoint_steps", {"choice": [5]}, "it changes no result", "Drop the key."),
        ("students.half.train.checkpoint_steps", {"choice": [5]}, "it changes no result", "Drop the key."),
        ("store.path", {"choice": ["x"]}, "it changes no result", "Drop the key."),
        ("store", {"choice": [{"path": "x"}]}, "it changes no result", "Drop the key."),
        ("cluster.address", {"choice": ["auto"]}, "it changes no result", "Drop the key."),
        ("runs_dir", {"choice": ["x"]}, "it changes no result", "Drop the key."),
        ("tracking.enabled", {"choice": [True, False]}, "it changes no result", "Drop the key."),
        ("tune.trials", {"choice": [1]}, "it changes no result", "Drop the key."),
    ],
)
def test_what_cannot_be_searched_is_refused_with_its_path(
    path: str, values: dict[str, Any], cause: str, remedy: str
) -> None:
    error = refusal({path: values})
    assert error.cause.startswith(f"tune.space.{path}")
    assert cause in error.cause
    assert remedy in error.remedy


@pytest.mark.parametrize(
    ("path", "distribution", "value"),
    [
        ("loss.temperature", {"uniform": [0, 8]}, "0.0"),
        ("loss.soft", {"uniform": [-0.1, 1]}, "-0.1"),
        ("train.dropout", {"uniform": [0, 1.5]}, "1.5"),
        ("train.warmup", {"quniform": [0, 2, 0.5]}, "2.0"),
        ("train.epochs", {"uniform": [1, 3]}, "1.0"),  # no epochs and a half
        ("train.epochs", {"randint": [0, 3]}, "0"),
        ("students.half.max_length.movies", {"lograndint": [2, 64]}, "2"),
        ("train.optimizer", {"choice": ["adamw", "adam"]}, "'adam'"),
        ("students.half.layers", {"choice": [1, [0, 1], [1, 0]]}, "[1, 0]"),
        ("loss.annealing", {"choice": ["linear", None]}, "None"),
        ("loss.hard", {"choice": ["0.3"]}, "'0.3'"),
        ("tasks.stars.aggregation.strategy", {"choice": ["mean", "entropy"]}, "'entropy'"),
    ],
)
def test_a_value_that_the_config_would_not_take_is_named(
    path: str, distribution: dict[str, Any], value: str
) -> None:
    assert refusal({path: distribution}).cause.startswith(f"tune.space.{path} = {value}: ")


def test_the_last_of_randint_is_below_its_end() -> None:
    with pytest.raises(ConfigError, match=r"layers = 0"):
        checked(search_of({"students.half.layers": {"randint": [0, 4]}}))
    config = search_of({"loss.hard": {"uniform": [0, 1]}, "students.half.layers": {"randint": [1, 2]}})
    assert checked(config) is config.tune  # 2 itself is never tried


@pytest.mark.parametrize(
    "space",
    [
        SPACE,
        {"loss.soft": {"uniform": [0, 1]}, "loss.annealing": {"choice": ["constant", "linear"]}},
        {"aggregation.strategy": {"choice": ["mean", "best"]}},
        {"aggregation.teacher_weights.movies-tiny": {"uniform": [0, 1]}},
        {"tasks.movies.aggregation.strategy": {"choice": ["mean", "entropy"]}},
        {"tasks.movies.aggregation": {"choice": [{"strategy": "entropy"}, {}]}},
        {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}, "train.epochs": {"randint": [1, 9]}},
        {"train.early_stopping.patience": {"randint": [1, 4]}},
        {"students.half.train.learning_rate": {"loguniform": [1e-5, 1e-3]}},
        {"students.half.loss": {"choice": [{"hard": 1.0}, {"soft": 1.0}]}},
        {"students.half.max_length.movies": {"choice": [32, 64]}},
        {"students.half.init_from": {"choice": ["movies-big", "stars-big"]}},
        {"seed": {"choice": [0, 1, 2]}},
    ],
)
def test_what_makes_another_student_may_be_searched(space: dict[str, Any]) -> None:
    config = search_of(space)
    assert checked(config) is config.tune


WEIGHT = "aggregation.teacher_weights.movies-big"


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("loss.temperature", "students.half.loss.temperature"),
        ("train.dropout", "students.half.train.dropout"),
        (WEIGHT, f"tasks.movies.{WEIGHT}"),
    ],
)
def test_a_key_that_another_one_hides_is_refused(path: str, own: str) -> None:
    """Every trial would train the same student."""
    space, shown = {path: {"uniform": [0.1, 0.9]}}, own.replace(".movies.", ".<task>.")
    checked(search_of(space))
    error = refusal(space, {own: 0.5})
    assert error.cause == f"tune.space.{path}: it changes nothing, {shown} is set"
    assert error.remedy == f"Search {shown}, or drop either of them."
    checked(search_of({own: {"uniform": [0.1, 0.9]}}, {own: 0.5}))


HIDDEN_FIRST: list[dict[str, Any]] = [{"loss": {"hidden": 1}, "epochs": 2}, {}]


def test_a_search_labels_no_hidden_targets() -> None:
    hidden = {"loss.hidden": {"choice": [0.0, 1.0]}}
    for space, own in (
        (hidden, {"loss.hidden": 0.5}),
        ({"stages": {"choice": [[], HIDDEN_FIRST]}}, {"stages": HIDDEN_FIRST}),
        ({"students.half.stages": {"choice": [[], HIDDEN_FIRST]}}, {"students.half.stages": HIDDEN_FIRST}),
    ):
        config = search_of(space)
        checked(config)
        with pytest.raises(ConfigError, match="teachers make hidden targets only where") as caught:
            check_derived(*with_facts(config))
        assert next(iter(space)) in caught.value.cause
        check_derived(*with_facts(search_of(space, own)))
    soft = {"stages": {"choice": [[], [{"loss": {"soft": 1}}, {"loss": {"hard": 1}}]]}}
    check_derived(*with_facts(search_of(soft)))


def test_a_search_over_hidden_states_may_begin_with_derived_stages() -> None:
    config = search_of({"stages": {"choice": [[], None]}})
    checked(config)
    facts = facts_of(config)
    counted = {name: replace(task, words=1000) for name, task in facts.tasks.items()}
    facts = replace(facts, tasks=counted, teachers=dict.fromkeys(config.teachers, ModelFacts(32)))
    check_derived(config, facts)
    assert values_of(config, config.tune.space, facts) == {"stages": None}  # type: ignore[union-attr]


def test_stages_are_searched_as_a_whole_or_by_number() -> None:
    whole = search_of({"stages": {"choice": [[], HIDDEN_FIRST]}}, {"stages": HIDDEN_FIRST})
    assert values_of(whole, whole.tune.space, facts_of(whole)) == {"stages": HIDDEN_FIRST}  # type: ignore[union-attr]
    assert with_values(whole, {"stages": []}).stages == ()
    space = {"stages.0.epochs": {"randint": [1, 9]}, "stages.0.learning_rate": UNIFORM}
    config = search_of(space, {"stages": [{**HIDDEN_FIRST[0], "learning_rate": 2.0}, {}]})
    assert checked(config) is config.tune
    assert values_of(config, config.tune.space, facts_of(config)) == {
        "stages.0.epochs": 2,
        "stages.0.learning_rate": 2.0,
    }
    changed = with_values(config, {"stages.0.epochs": 5}).stages
    assert [stage.epochs for stage in changed or ()] == [5, None]
    assert (
        "it changes nothing, students.half.stages is set"
        not in refusal({"stages.2.epochs": {"randint": [1, 9]}}, {"stages": HIDDEN_FIRST}).cause
    )


def test_the_default_has_the_derived_values_of_a_stage() -> None:
    config = search_of(
        {"stages.1.epochs": {"randint": [1, 90]}, "stages.1.learning_rate": {"loguniform": [1e-6, 1]}},
        {"stages": [HIDDEN_FIRST[0], {}], "train.epochs": 9, "train.learning_rate": 0.01},
    )
    values = {"stages.1.epochs": 9 - HIDDEN_FIRST[0]["epochs"], "stages.1.learning_rate": 0.01}
    assert values_of(config, config.tune.space, facts_of(config)) == values  # type: ignore[union-attr]
    own = search_of(
        {"students.half.stages.1.learning_rate": {"loguniform": [1e-6, 1]}},
        {"students.half.stages": [HIDDEN_FIRST[0], {"learning_rate": 0.5}]},
    )
    values = {"students.half.stages.1.learning_rate": 0.5}
    assert values_of(own, own.tune.space, facts_of(own)) == values  # type: ignore[union-attr]


TRANSFER = "tasks.movies.transfer.limit"


def test_a_search_takes_no_more_texts_of_other_tasks_than_the_config() -> None:
    space = {TRANSFER: {"choice": [100, 400]}}
    assert "movies has no transfer" in refusal(space).cause
    error = refusal(space, {"tasks.movies.transfer": {"tasks": "all", "limit": 300}})
    assert "teachers label the 300 texts that the config's own limit takes" in error.cause
    assert TRANSFER in error.remedy
    for limit in (400, None):
        checked(search_of(space, {"tasks.movies.transfer": {"tasks": "all", "limit": limit}}))
    assert "the task itself" in refusal({"tasks.movies.transfer.tasks": {"choice": [["stars"]]}}).cause


def test_epochs_go_with_the_texts_that_a_trial_takes() -> None:
    """By facts of the data that all trials share."""
    run = {"tasks.movies.transfer": {"tasks": "all", "limit": 32000}, "train": {}}
    config = search_of({TRANSFER: {"choice": [320, 32000]}}, run)
    facts = facts_of(config)
    task = facts.tasks["movies"]
    facts = replace(
        facts, tasks={**facts.tasks, "movies": replace(task, examples=task.examples + 32000, taken=32000)}
    )
    epochs = [
        student_settings(with_values(config, {TRANSFER: limit}), "half", facts).train.epochs
        for limit in (320, 32000)
    ]
    assert epochs[0] > epochs[1] == 4
    assert most_epochs(config, facts) == epochs[0]


def test_a_key_that_every_stage_has_for_itself_is_refused() -> None:
    stage = {"loss": {"hard": 1, "temperature": 2}, "epochs": 2, "learning_rate": 1e-4}
    staged = {"students.half.stages": [stage, stage]}
    for path in ("loss.hard", "train.learning_rate"):
        error = refusal({path: UNIFORM}, staged)
        assert error.cause == f"tune.space.{path}: it changes nothing, every stage has its own"
    checked(search_of({"train.head_learning_rate": UNIFORM}, staged))
    checked(search_of({"loss.soft": UNIFORM}, {"students.half.stages": [stage, {}]}))


def test_a_key_that_is_hidden_for_one_task_alone_may_be_searched() -> None:
    space = {"aggregation.strategy": {"choice": ["mean", "best"]}}
    run = {"tasks.movies.aggregation.strategy": "entropy"}
    checked(search_of(space, run))
    error = refusal(space, {**run, "tasks.stars.aggregation.strategy": "confidence"})
    assert error.cause.endswith("it changes nothing, tasks.<task>.aggregation.strategy is set")


ALONE: dict[str, Any] = {
    "tasks": {"movies": {"kind": "text-classification", "data": {"path": "csv"}}},
    "teachers": {"movies-big": {"task": "movies", "model": "big"}},
}


@pytest.mark.parametrize(
    ("path", "run", "why", "remedy"),
    [
        ("loss.task_weights.movies", ALONE, "the weight of the only task is always 1", "Drop"),
        ("students.half.loss.task_weights.movies", ALONE, "the weight of the only task", "Drop"),
        (WEIGHT, ALONE, "the weight of a task's only teacher is always 1", "Drop"),
        ("aggregation.teacher_weights.stars-big", {}, "a task's only teacher", "Drop"),
        ("tasks.stars.aggregation.teacher_weights.stars-big", {}, "a task's only teacher", "Drop"),
        (
            "loss.temperature",
            {"loss.task_temperatures": {"movies": 1.0, "stars": 3.0}},
            "every task has one of its own",
            "Search task_temperatures.<task>",
        ),
        (
            "students.half.loss.temperature",
            {"loss.task_temperatures": {"movies": 1.0, "stars": 3.0}},
            "every task has one of its own",
            "Search task_temperatures.<task>",
        ),
    ],
)
def test_a_key_that_can_have_no_effect_is_refused_with_the_reason(
    path: str, run: dict[str, Any], why: str, remedy: str
) -> None:
    error = refusal({path: UNIFORM}, run)
    assert error.cause.startswith(f"tune.space.{path}: it changes nothing, ")
    assert why in error.cause
    assert error.remedy.startswith(remedy)


@pytest.mark.parametrize(
    ("path", "run"),
    [
        ("loss.temperature", {"loss.task_temperatures": {"movies": 1.0}}),
        ("loss.task_temperatures.movies", {"loss.task_temperatures": {"movies": 1.0, "stars": 3.0}}),
        ("loss.temperature", ALONE),
    ],
)
def test_a_key_that_has_some_effect_may_be_searched(path: str, run: dict[str, Any]) -> None:
    checked(search_of({path: UNIFORM}, run))


# ---------------------------------------------------------------- names with dots


DOTTED: dict[str, Any] = {
    "tasks": {
        "movies": {"kind": "text-classification", "data": {"path": "csv"}},
        "imdb.v2": {"kind": "text-classification", "data": {"path": "csv"}},
    },
    "teachers": {
        "movies-big": {"task": "movies", "model": "big"},
        "v2.big": {"task": "imdb.v2", "model": "big"},
        "v2.big.er": {"task": "imdb.v2", "model": "big"},
    },
    "students": {"half": {"init_from": "movies-big"}, "half.5": {"init_from": "movies-big"}},
}


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("loss.temperature", ["loss", "temperature"]),
        ("", [""]),
        ("loss.task_weights.imdb.v2", ["loss", "task_weights", "imdb.v2"]),
        ("loss.task_weights.imdb.v22", ["loss", "task_weights", "imdb", "v22"]),
        ("tasks.imdb.v2.data.max_length", ["tasks", "imdb.v2", "data", "max_length"]),
        ("aggregation.teacher_weights.v2.big", ["aggregation", "teacher_weights", "v2.big"]),
        ("aggregation.teacher_weights.v2.big.er", ["aggregation", "teacher_weights", "v2.big.er"]),
        ("students.half.5.loss.soft", ["students", "half.5", "loss", "soft"]),
        ("students.half.loss.soft", ["students", "half", "loss", "soft"]),
    ],
)
def test_a_name_with_dots_is_one_key(path: str, keys: list[str]) -> None:
    assert keys_of(search_of(run=DOTTED), path) == keys


def test_what_has_dots_in_its_name_may_be_searched() -> None:
    space = {
        "loss.task_weights.imdb.v2": UNIFORM,
        "aggregation.teacher_weights.v2.big": UNIFORM,
        "students.half.5.loss.soft": {"uniform": [0, 1]},
        "students.half.5.max_length.imdb.v2": {"choice": [32, 128]},
    }
    config = search_of(space, DOTTED, student="half.5")
    tune = checked(config)
    changed = with_values(config, {path: one.arguments[0] for path, one in tune.space.items()})
    assert changed.loss.task_weights == {"imdb.v2": 1.0}
    assert changed.students["half.5"].max_length == {"imdb.v2": 32}
    assert values_of(config, tune.space, facts_of(config)) == {
        "loss.task_weights.imdb.v2": 1.0,
        "aggregation.teacher_weights.v2.big": 1.0,
        "students.half.5.loss.soft": 0.7,
        "students.half.5.max_length.imdb.v2": 128,
    }
    other = refusal({"students.half.5.loss.soft": {"uniform": [0, 1]}}, DOTTED, student="half")
    assert "the student searched is half" in other.cause


def test_a_choice_of_one_is_no_mistake() -> None:
    checked(search_of({"loss.temperature": {"choice": [3.0]}}))


# ---------------------------------------------------------------- the rest of the section


def test_without_a_section_there_is_no_search() -> None:
    config = search_of().model_copy(update={"tune": None})
    with pytest.raises(ConfigError, match="tune: missing"):
        checked(config)


def test_a_grid_must_be_worth_its_trials() -> None:
    space = {"loss.soft": {"choice": [0.1, 0.5, 0.9]}, "students.half.layers": {"choice": [1, 2]}}
    error = refusal(space, algorithm="grid", trials=5)
    assert error.cause == "tune.space: the grid has 6 points, tune.trials allows 5"
    assert error.remedy == "Set tune.trials to 6, or take choices away."
    checked(search_of(space, algorithm="grid", trials=6))


def test_a_hopeless_grid_is_counted_and_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        space_of_values, "_grid", lambda tune: pytest.fail("its points would fill the memory")
    )
    paths = ("loss.hard", "loss.soft", "loss.temperature", "train.learning_rate", "train.weight_decay")
    space = {path: {"choice": [(1 + i) / 64 for i in range(64)]} for path in paths}
    assert "has 1073741824 points" in refusal(space, algorithm="grid", trials=16).cause


@pytest.mark.parametrize(
    ("path", "distribution"),
    [
        ("students.half.layers", {"choice": [1, 2]}),
        ("train.epochs", {"randint": [1, 4]}),
        ("train.optimizer", {"choice": ["adamw", "sgd"]}),
        ("seed", {"choice": [0, 1]}),
    ],
)
def test_a_population_changes_only_what_can_change_on_the_way(
    path: str, distribution: dict[str, Any]
) -> None:
    error = refusal({path: distribution}, scheduler="pbt", algorithm="random")
    assert "this one cannot change" in error.cause
    assert error.remedy.startswith("Set tune.scheduler to asha")


@pytest.mark.parametrize(
    "path",
    ["loss.temperature", "students.half.loss.temperature", "students.half.train.learning_rate", WEIGHT],
)
def test_a_population_may_change_weights_and_rates(path: str) -> None:
    checked(search_of({path: {"uniform": [0.1, 0.9]}}, **POPULATION))


@pytest.mark.parametrize(
    ("run", "tune", "cause", "remedy"),
    [
        ({"train.early_stopping": {}}, {}, "early stopping of half keeps its best", "of half to null"),
        ({"students.half.train.early_stopping": {}}, {}, "early stopping of half", "of half to null"),
        ({"train.workers": 2}, {}, "train.workers is 2", "Set train.workers to 1"),
        ({}, {"trials": 8}, "a population of 8 trains side by side", "Set tune.concurrency to 8"),
    ],
)
def test_a_population_passes_on_weights_between_trials_that_train_side_by_side(
    run: dict[str, Any], tune: dict[str, Any], cause: str, remedy: str
) -> None:
    error = refusal({"loss.temperature": UNIFORM}, run, **{**POPULATION, **tune})
    assert cause in error.cause
    assert remedy in error.remedy
    checked(search_of({"loss.temperature": UNIFORM}, run, **{**POPULATION, **tune, "scheduler": "asha"}))


def test_another_students_early_stopping_does_not_concern_a_population() -> None:
    run: dict[str, Any] = {"students.tiny.train.early_stopping": {}}
    checked(search_of({"loss.temperature": UNIFORM}, run, **POPULATION))


def test_names_that_no_config_could_have_are_refused_at_once() -> None:
    """The study would be made and could never be resumed, nor its winner be trained by hand."""
    checked(search_of(run={"name": "x" * 58}))
    assert refusal(run={"name": "x" * 59}).cause == f"name: {'x' * 59}-study has more than 64 characters"
    checked(search_of(run={"name": "x" * 53, "seeds": [0, 1]}))
    error = refusal(run={"name": "x" * 53, "seeds": [0, 10]})
    assert error.cause == f"name: {'x' * 53}-best-seed10 has more than 64 characters"


@pytest.mark.parametrize(("scheduler", "longest"), [("asha", 4), ("pbt", 3)])
def test_grace_that_no_trial_outlives_is_refused(scheduler: str, longest: int) -> None:
    space = {"loss.temperature": UNIFORM}
    given = {**POPULATION, "scheduler": scheduler}
    check_derived(*with_facts(search_of(space, **given, grace_epochs=longest)))
    cause = f"tune.grace_epochs: {longest + 1}, more than {longest} would change nothing in 4 epochs"
    with pytest.raises(ConfigError, match=cause):
        check_derived(*with_facts(search_of(space, **given, grace_epochs=longest + 1)))
    check_derived(*with_facts(search_of(space, scheduler="none", grace_epochs=5)))


def test_grace_is_compared_with_derived_epochs() -> None:
    config = search_of({"loss.temperature": UNIFORM}, {"train.epochs": None}, grace_epochs=61)
    checked(config)
    with pytest.raises(ConfigError, match="more than 60 would change nothing in 60 epochs"):
        check_derived(*with_facts(config))


def test_the_longest_trial_counts() -> None:
    assert most_epochs(*with_facts(search_of())) == 4
    assert most_epochs(*with_facts(search_of({"train.epochs": {"randint": [1, 9]}}))) == 8
    own = search_of({"students.half.train.epochs": {"choice": [9, 2]}}, {"train.epochs": 30})
    assert most_epochs(*with_facts(own)) == 30  # its own, which come first


def test_which_student() -> None:
    assert student_of(search_of()) == "half"
    lone = search_of(run={"students": {"half": {"init_from": "movies-big"}}}, student=None)
    assert student_of(lone) == "half"
    error = refusal(student=None)
    assert (error.cause, error.remedy) == (
        "tune.student: there are several students",
        "Name one of half, tiny.",
    )
    assert refusal(student="third").cause == "tune.student: there is no 'third'"


# ---------------------------------------------------------------- metrics


@pytest.mark.parametrize("metric", ["macro", "accuracy", "movies/f1", "film/accuracy", "stars/accuracy"])
def test_a_metric_that_nobody_reports_is_refused(metric: str) -> None:
    error = refusal(metric=["macro/score", metric], scheduler="none")
    assert error.cause == f"tune.metric: there is no {metric!r}"
    assert "macro/score, movies/skill, movies/accuracy" in error.remedy
    assert "stars/pearson" in error.remedy


def test_errors_are_minimised_and_scores_maximised() -> None:
    metrics = ["macro/score", "movies/nll", "movies/ece", "stars/pearson", "stars/mae"]
    config = search_of(metric=metrics, scheduler="none")
    checked(config)
    assert modes(config) == ("max", "min", "min", "max", "min")
    assert modes(search_of(metric="stars/mse")) == ("min",)


def test_modes_may_be_said() -> None:
    assert modes(search_of(metric="movies/accuracy", mode="min")) == ("min",)
    both = search_of(metric=["macro/score", "movies/ece"], mode=["max", "max"], scheduler="none")
    assert modes(both) == ("max", "max")


# ---------------------------------------------------------------- values → config


def test_values_take_their_places() -> None:
    config = search_of()
    changed = with_values(
        config,
        {
            "loss.task_weights.movies": 2.0,  # in a section that is empty
            "train.early_stopping.patience": 5,  # in one that is null
            "students.half.train.early_stopping.patience": 3,  # in one that is not there
            "students.half.layers": [0, 3],
        },
    )
    assert changed.loss.task_weights == {"movies": 2.0}
    assert changed.train.early_stopping is not None
    assert changed.train.early_stopping.patience == 5
    assert changed.students["half"].layers == (0, 3)
    own = student_train(changed, "half").early_stopping
    assert own is not None
    assert own.patience == 3
    assert config == search_of()  # as it was


def test_a_students_own_loss_leaves_the_others_alone() -> None:
    changed = with_values(search_of(), {"students.half.loss.task_weights.movies": 3.0})
    assert changed.students["half"].loss["task_weights"] == {"movies": 3.0}
    assert changed.students["tiny"].loss == {}


def test_no_values_change_nothing() -> None:
    config = search_of(run={"seeds": [1, 2], "loss.task_weights.movies": 2.0}, metric="movies/nll")
    assert with_values(config, {}) == config


def test_values_that_fail_only_together_fail() -> None:
    config = search_of({"loss.hard": {"choice": [0, 1]}, "loss.soft": {"choice": [0, 1]}})
    checked(config)
    with pytest.raises(ConfigError, match="hard and soft are both 0"):
        with_values(config, {"loss.hard": 0, "loss.soft": 0})


# ---------------------------------------------------------------- config → values


def own_values(path: str, distribution: dict[str, Any], run: dict[str, Any] | None = None) -> Any:
    """What the config itself has at `path`; None where it is outside."""
    config = search_of({path: distribution}, run)
    assert config.tune is not None
    values = values_of(config, config.tune.space, facts_of(config))
    return None if values is None else values[path]


@pytest.mark.parametrize(
    ("path", "run", "value"),
    [
        ("loss.temperature", {"loss.temperature": 3.5}, 3.5),
        ("loss.temperature", {}, 2.0),  # a default
        ("loss.task_weights.movies", {}, 1.0),  # a weight that is not given
        (WEIGHT, {}, 1.0),
        (WEIGHT, {WEIGHT: 3.0}, 3.0),
        (f"tasks.movies.{WEIGHT}", {}, 1.0),
        (f"tasks.movies.{WEIGHT}", {WEIGHT: 3.0}, 3.0),  # what the run says of it
        ("students.half.loss.temperature", {"loss.temperature": 3.5}, 3.5),
        ("students.half.loss.temperature", {"students.half.loss.temperature": 4.0}, 4.0),
        ("students.half.loss.task_weights.movies", {}, 1.0),
        ("students.half.loss.task_weights.movies", {"loss.task_weights.movies": 3.0}, 3.0),
        ("students.half.train.weight_decay", {"train.weight_decay": 1.5}, 1.5),
        ("loss.task_temperatures.movies", {"loss.temperature": 3.0}, 3.0),
        ("loss.task_temperatures.movies", {"students.half.loss.temperature": 5.0}, 5.0),
        ("students.half.loss.task_temperatures.movies", {"loss.task_temperatures.movies": 4.0}, 4.0),
        ("loss.task_temperatures.movies", {}, 2.0),  # derived, as all below
        ("loss.soft", {}, 0.7),
        ("students.half.loss.hard", {"loss.soft": 0.1}, 0.75),  # beside the derived 0.3, normalised
        ("train.learning_rate", {}, 5e-5),
        ("students.half.train.head_learning_rate", {"train.learning_rate": 1e-4}, 3e-3),
    ],
)
def test_the_configs_own_value_is_the_one_in_force(path: str, run: dict[str, Any], value: float) -> None:
    assert own_values(path, {"uniform": [0, 9]}, run) == pytest.approx(value)


@pytest.mark.parametrize(
    ("path", "distribution", "run", "value"),
    [
        ("students.half.max_length.movies", {"randint": [16, 256]}, {}, 128),
        ("students.half.max_length.movies", {"choice": [64, 32]}, {"tasks.movies.data.max_length": 64}, 64),
        ("tasks.movies.aggregation.strategy", {"choice": ["mean", "best"]}, {}, "mean"),
        ("students.half.layers", {"choice": [[0, 3], 1]}, {"students.half.layers": [0, 3]}, [0, 3]),
        ("train.dropout", {"choice": [None, 0.1]}, {}, None),
        ("train.epochs", {"choice": [60, 9]}, {"train.epochs": None}, 60),
        ("train.early_stopping.patience", {"randint": [1, 40]}, {"train": {"early_stopping": {}}}, 30),
        ("train.learning_rate", {"choice": [None, 1e-3]}, {}, None),
    ],
)
def test_own_values_that_are_no_weights(
    path: str, distribution: dict[str, Any], run: dict[str, Any], value: Any
) -> None:
    config = search_of({path: distribution}, run)
    assert config.tune is not None
    assert values_of(config, config.tune.space, facts_of(config)) == {path: value}


def test_a_value_in_which_tasks_differ_is_not_in_the_space() -> None:
    config = search_of({"loss.temperature": UNIFORM})
    assert config.tune is not None
    facts = facts_of(config)
    many = replace(facts.tasks["movies"], labels=77)
    facts = replace(facts, tasks={**facts.tasks, "movies": many})
    assert values_of(config, config.tune.space, facts) is None


@pytest.mark.parametrize(
    ("distribution", "inside", "outside"),
    [
        ({"uniform": [1, 8]}, [1.0, 8.0], [0.99, 8.01]),
        ({"loguniform": [1, 8]}, [1.0, 8.0], [0.5, 9.0]),
        ({"quniform": [0.5, 2, 0.5]}, [0.5, 1.5, 2.0], [0.25, 0.6, 2.5]),
        ({"choice": [1.0, 4.0]}, [1.0, 4.0], [2.0]),
    ],
)
def test_values_outside_are_no_point_of_the_search(
    distribution: dict[str, Any], inside: list[float], outside: list[float]
) -> None:
    def own_value(value: float) -> Any:
        return own_values("loss.temperature", distribution, {"loss.temperature": value})

    assert [own_value(value) for value in inside] == inside
    assert [own_value(value) for value in outside] == [None] * len(outside)


def test_whole_numbers_stop_before_their_end() -> None:
    def own_value(epochs: int) -> Any:
        return own_values("train.epochs", {"randint": [2, 4]}, {"train.epochs": epochs})

    assert [own_value(epochs) for epochs in (1, 2, 3, 4)] == [None, 2, 3, None]


# ---------------------------------------------------------------- points known up front


def test_a_grid_counts_like_a_clock() -> None:
    space = {"loss.soft": {"choice": [0.1, 0.9]}, "students.half.layers": {"choice": [1, [0, 3]]}}
    grid = points_of(search_of(space, algorithm="grid"))
    assert [tuple(point.values()) for point in grid] == [(0.1, 1), (0.1, [0, 3]), (0.9, 1), (0.9, [0, 3])]


def test_optuna_knows_no_points_up_front() -> None:
    assert points(*with_facts(search_of())) is None


def test_random_points_start_with_the_configs_own() -> None:
    space = {**SPACE, "students.half.layers": {"choice": [2, 1, [0, 3]]}}
    first, second, *_ = points_of(search_of(space, **GIVEN))
    assert first == {
        "loss.temperature": 2.0,
        "loss.task_weights.movies": 1.0,
        "students.half.layers": 2,
    }
    assert second != first
    outside = points_of(search_of(space, {"loss.temperature": 9.0}, **GIVEN))
    assert len(outside) == 8
    assert outside[0]["loss.temperature"] != 9.0


def test_more_trials_start_with_the_same_points() -> None:
    """A study that is given more trials must not find its old ones under other numbers."""
    known = {trials: points_of(search_of(trials=trials, algorithm="random")) for trials in (1, 4, 9)}
    assert [len(grid) for grid in known.values()] == [1, 4, 9]
    assert known[9][:4] == known[4]
    assert known[4][:1] == known[1]
    assert len({str(point) for point in known[9]}) == 9


def test_the_seed_makes_the_points() -> None:
    first, again, other = (points_of(search_of(seed=seed, **GIVEN)) for seed in (3, 3, 4))
    assert first == again
    assert all(a != b for a, b in zip(first[1:], other[1:], strict=True))


def test_choices_keep_their_types() -> None:
    layers = [1, [0, 3], None]
    drawn = points_of(search_of({"students.half.layers": {"choice": layers}}, algorithm="random", trials=40))
    seen = [point["students.half.layers"] for point in drawn]
    assert all(value in seen for value in layers)
    assert all(value in layers for value in seen)


def distributions_drawn() -> st.SearchStrategy[dict[str, Any]]:
    """Any distribution that a config takes; steps as people write them."""
    bounds = st.tuples(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3)).filter(lambda two: two[0] < two[1])
    whole = st.tuples(st.integers(1, 50), st.integers(1, 50)).map(lambda two: (two[0], two[0] + two[1]))
    step = st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.3, 0.7, 2.0])
    steps = st.tuples(st.integers(0, 30), st.integers(1, 30), step).map(
        lambda made: (round(made[0] * made[2], 6), round((made[0] + made[1]) * made[2], 6), made[2])
    )
    return st.one_of(
        bounds.map(lambda two: {"uniform": two}),
        bounds.map(lambda two: {"loguniform": two}),
        whole.map(lambda two: {"randint": two}),
        whole.map(lambda two: {"lograndint": two}),
        steps.map(lambda made: {"quniform": made}),
    )


@given(drawn=distributions_drawn(), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_every_random_point_is_one_that_optuna_takes(drawn: dict[str, Any], seed: int) -> None:
    """Resumption, importance and figures all rely on it; Ray and Optuna each have an arithmetic of their own."""
    config = search_of({"loss.temperature": drawn}, trials=6, algorithm="random", seed=seed)
    assert config.tune is not None
    known = distributions(config.tune)["loss.temperature"]
    for point in points_of(config):
        value = point["loss.temperature"]
        assert known._contains(known.to_internal_repr(value)), (known, value)
        assert nearest(config.tune.space["loss.temperature"], value) == value


@given(drawn=distributions_drawn(), value=st.floats(-1e4, 1e4))
@settings(max_examples=60, deadline=None)
def test_the_nearest_value_is_one_of_the_distributions(drawn: dict[str, Any], value: float) -> None:
    one = Distribution.model_validate(drawn)
    config = search_of({"loss.temperature": drawn})
    assert config.tune is not None
    number = nearest(one, value)
    assert isinstance(number, int) == ("int" in one.kind)
    assert one.arguments[0] <= number <= one.arguments[1]
    known = distributions(config.tune)["loss.temperature"]
    assert known._contains(known.to_internal_repr(number))


def test_a_space_is_ray_tunes_own() -> None:
    space = {
        "loss.temperature": {"uniform": [1, 8]},
        "train.learning_rate": {"loguniform": [1e-5, 1e-2]},
        "train.warmup": {"quniform": [0, 0.5, 0.1]},
        "train.epochs": {"randint": [1, 4]},
        "students.half.max_length.movies": {"lograndint": [8, 128]},
        "loss.annealing": {"choice": ["constant", "linear"]},
    }
    tune = checked(search_of(space))
    assert {path: domain.domain_str for path, domain in domains(tune).items()} == {
        "loss.temperature": "(1.0, 8.0)",
        "train.learning_rate": "(1e-05, 0.01)",
        "train.warmup": "(0.0, 0.5)",
        "train.epochs": "(1, 4)",
        "students.half.max_length.movies": "(8, 128)",
        "loss.annealing": "['constant', 'linear']",
    }
    known = distributions(tune)
    assert [known[path].__dict__.get("log") for path in space] == [False, True, False, False, True, None]


def test_folds_are_refused_where_a_fold_would_be_known() -> None:
    with pytest.raises(ConfigError, match="movies-big is a finished teacher"):
        checked(search_of(folds=3))
    tuned: dict[str, Any] = {f"teachers.{name}.fine_tune": {} for name in ("movies-big", "stars-big")}
    checked(search_of(folds=3, run=tuned))
    with pytest.raises(ConfigError, match="movies has augment"):
        checked(search_of(folds=3, run={**tuned, "tasks.movies.augment": {"dropout": {}}}))
    with pytest.raises(ConfigError, match="folds"):
        search_of(folds=3, scheduler="pbt", algorithm="random")


def test_grace_of_a_search_with_folds_counts_folds() -> None:
    tuned: dict[str, Any] = {f"teachers.{name}.fine_tune": {} for name in ("movies-big", "stars-big")}
    check_derived(*with_facts(search_of(folds=3, grace_epochs=3, run=tuned)))
    with pytest.raises(ConfigError, match="in 3 folds"):
        check_derived(*with_facts(search_of(folds=3, grace_epochs=4, run=tuned)))


def test_a_student_of_some_tasks_is_searched_over_these() -> None:
    own = {"students.half.tasks": ["movies"]}
    checked(search_of({"loss.temperature": UNIFORM}, own))
    assert "there is no 'stars/pearson'" in refusal(run=own, metric="stars/pearson").cause
    error = refusal({"loss.task_weights.movies": UNIFORM}, own)
    assert error.cause.endswith("the weight of the only task is always 1")
    error = refusal({"tasks.stars.aggregation.strategy": {"choice": ["mean", "best"]}}, own)
    assert "it changes nothing" in error.cause
    error = refusal({"students.half.tasks": {"choice": [["movies"], ["stars"]]}})
    assert "scores over other tasks cannot be compared" in error.cause
