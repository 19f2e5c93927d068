"""What `co_train` needs, refuses and derives."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config.load import parse_config
from pipeline.config.recipe import CO_TRAIN_SHARE, Facts, ModelFacts, learning_rate_of
from pipeline.config.resolved import resolve_config
from pipeline.errors import ConfigError, Errors
from tests.conftest import TinyRun
from tests.unit.pipeline.facts import BASE, facts_of

STUDENT = {"bare": {"model": "a/model"}}


@pytest.mark.parametrize(
    ("sections", "cause"),
    [
        ({"co_train": {"tasks": ["moods"]}}, r"co_train\.tasks: there is no 'moods'"),
        ({"students": {**STUDENT, "other": {"model": "b/model"}}}, "one student, not 2: bare, other"),
        (
            {"students": {"bare": {"model": "a/model", "tasks": ["mood"]}}, "co_train": {"tasks": ["tone"]}},
            "no student learns tone",
        ),
        ({"train": {"workers": 2}}, "train.workers: teachers are trained beside one worker"),
        ({"runs_dir": "s3://bucket/runs"}, "runs_dir"),
        ({"baselines": ["best_teacher"]}, "baselines: best_teacher needs stored targets"),
        ({"tune": {"space": {"loss.temperature": {"uniform": [1, 2]}}}}, "tune: trials share stored targets"),
        ({"loss": {"hidden": 0.5}}, "bare has a hidden loss"),
        ({"stages": [{"loss": {"hidden": 1}}, {"loss": {"soft": 1}}]}, "bare has a hidden loss"),
        ({"loss": {"hard": 1, "soft": 0}}, "bare has no soft loss"),
        ({"train": {"task_focus": "gap"}}, "task_focus of bare"),
        ({"train": {"optimizer": "sgd", "learning_rate": 0.1}}, r"co_train\.learning_rate is missing"),
        ({"co_train": {"optimizer": "sgd"}}, "learning_rate. is missing"),
        ({"co_train": {"every": 0}}, r"co_train\.every"),
        ({"co_train": {"mutual": 1.0}}, r"co_train\.mutual"),
    ],
)
def test_what_cannot_work_is_refused(tiny_run: TinyRun, sections: dict[str, Any], cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        parse_config(tiny_run(**{"students": STUDENT, "co_train": {}, **sections}))


def test_teachers_that_write_are_refused(tiny_run: TinyRun) -> None:
    """The other tasks may stay."""
    plain = tiny_run()
    writing = {"kind": "sequence-to-sequence", "data": plain["tasks"]["tone"]["data"]}
    tasks = {"mood": plain["tasks"]["mood"], "tone": writing}
    with pytest.raises(ConfigError, match="teacher writes its texts once") as caught:
        parse_config(tiny_run(tasks=tasks, students=STUDENT, co_train={}))
    assert caught.value.remedy == "Set co_train.tasks to [mood]."


def test_all_that_is_wrong_is_shown_at_once(tiny_run: TinyRun) -> None:
    shown: list[str] = []
    errors = Errors(lambda number, error: shown.append(error.cause))
    run = tiny_run(students=STUDENT, co_train={}, train={"workers": 2}, loss={"hidden": 1})
    with pytest.raises(ConfigError):
        parse_config(run, errors)
    assert len(shown) == 2


def test_one_tasks_teachers_or_all(tiny_run: TinyRun) -> None:
    every = parse_config(tiny_run(students=STUDENT, co_train={}))
    assert every.co_trained_tasks == ("mood", "tone")
    assert every.co_trained == ("mood-bert", "mood-distilbert", "tone-bert")
    one = parse_config(tiny_run(co_train={"tasks": ["tone"]}, students=STUDENT))
    assert one.co_trained == ("tone-bert",)
    assert parse_config(tiny_run()).co_trained == ()


def test_rates_are_derived_from_each_teachers_width(tiny_run: TinyRun) -> None:
    config = parse_config(tiny_run(students=STUDENT, co_train={"tasks": ["mood"], "mutual": 0.25}))
    facts = facts_of(config)
    facts = Facts(facts.tasks, facts.students, {**facts.teachers, "mood-bert": ModelFacts(width=128)})
    resolved = resolve_config(config, facts)
    together = resolved.co_training
    assert together is not None
    assert together.student == "bare"
    assert together.recipes.keys() == {"mood-bert", "mood-distilbert"}
    for name, model in (("mood-bert", ModelFacts(width=128)), ("mood-distilbert", BASE)):
        rate = together.recipes[name].learning_rate
        assert rate == pytest.approx(CO_TRAIN_SHARE * learning_rate_of(model)[0], rel=0.05)
        assert together.recipes[name].head_learning_rate == rate
        assert resolved.derived()[f"co_train.{name}.learning_rate"] == rate
    assert together.temperatures == {"mood-bert": 2.0, "mood-distilbert": 2.0}


def test_optimisers_may_differ(tiny_run: TinyRun) -> None:
    own = {"optimizer": "sgd", "learning_rate": 0.1}
    config = parse_config(tiny_run(students=STUDENT, co_train=own))
    resolved = resolve_config(config, facts_of(config))
    assert resolved.co_training is not None
    recipe = resolved.co_training.recipes["tone-bert"]
    assert (recipe.optimizer, recipe.learning_rate) == ("sgd", 0.1)
    assert resolved.students["bare"].train.optimizer == "adamw"


def test_no_stage_on_hidden_states_is_derived(tiny_run: TinyRun) -> None:
    """Their targets would be stored ones, of teachers as they no longer are."""
    long = {"epochs": 400}
    sections: list[dict[str, Any] | None] = [None, {}]
    for co_train in sections:
        config = parse_config(tiny_run(students=STUDENT, train=long, loss={}, co_train=co_train))
        facts = facts_of(config)
        tasks = {name: task.__class__(**{**vars(task), "words": 1000}) for name, task in facts.tasks.items()}
        resolved = resolve_config(config, Facts(tasks, facts.students, facts.teachers))
        assert bool(resolved.students["bare"].stages) == (co_train is None)
