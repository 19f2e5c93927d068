"""Values of keys that a config leaves out: golden values, given values untouched, the reasons."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.config.adapters import LoraConfig
from pipeline.config.load import parse_config
from pipeline.config.recipe import (
    STUDENT,
    TEACHER,
    Facts,
    ModelFacts,
    TaskFacts,
    epochs_of,
    head_rate_of,
    learning_rate_of,
    patience_of,
    stage_epochs,
    steps_of_pass,
    student_recipe,
    task_loss,
    teacher_recipe,
)
from pipeline.config.resolved import (
    StudentStage,
    resolve_config,
    student_settings,
    student_stages,
)
from pipeline.config.schema import FineTuneConfig, LossConfig, RunConfig, TrainConfig
from pipeline.errors import ConfigError
from pipeline.training.schedule import Schedule

EVEN = TaskFacts(labels=2, continuous=False, examples=8000, labelled=4000, majority=0.51)
INTENTS = TaskFacts(labels=77, continuous=False, examples=2500, labelled=2500, majority=0.02)
ENTITIES = TaskFacts(labels=9, continuous=False, examples=1000, labelled=1000, majority=0.83)
ANSWERS = TaskFacts(labels=None, continuous=False, examples=600, labelled=600, majority=None)
STRENGTH = TaskFacts(labels=None, continuous=True, examples=300, labelled=300, majority=None)
TASKS = {"movies": EVEN, "intents": INTENTS, "words": ENTITIES, "answers": ANSWERS, "strength": STRENGTH}
FACTS = Facts(TASKS, {"tiny": ModelFacts(128)}, {"big": ModelFacts(384)})


def config_of(**sections: Any) -> RunConfig:
    """A config that names tasks, teachers and students, and `sections`."""
    task = {"kind": "text-classification", "data": {"path": "csv"}}
    return parse_config(
        {
            "name": "run",
            "tasks": dict.fromkeys(TASKS, task),
            "teachers": {
                "big": {"task": "movies", "model": "big", "fine_tune": {}},
                **{f"of-{name}": {"task": name, "model": "big"} for name in TASKS},
            },
            "students": {"tiny": {"model": "tiny"}},
            **sections,
        }
    )


# ---------------------------------------------------------------- training


def test_a_student_has_all_values_and_each_has_a_reason() -> None:
    recipe, reasons = student_recipe(TrainConfig(), "tiny", FACTS)
    assert recipe.early_stopping is not None
    values = (recipe.epochs, recipe.learning_rate, recipe.head_learning_rate, recipe.early_stopping.patience)
    assert values == (9, 3e-4, 9e-3, 4)
    assert reasons == {
        "epochs": "3,354 steps (1,500 × √5) at 390 a pass",
        "learning_rate": "width 128",
        "head_learning_rate": "30 × learning_rate",
        "early_stopping.patience": "epochs ÷ 2, at least 3",
    }


def test_a_teacher_is_trained_on_the_labelled_examples_of_its_task() -> None:
    recipe, reasons = teacher_recipe(FineTuneConfig(), "big", "movies", FACTS)
    assert (recipe.epochs, recipe.learning_rate, recipe.head_learning_rate) == (3, 1e-4, 3e-3)
    assert reasons["epochs"] == "300 steps at 125 a pass"  # 4,000 of the 8,000 examples have labels
    many, why = teacher_recipe(FineTuneConfig(), "big", "intents", FACTS)
    assert (many.epochs, why["epochs"]) == (8, "600 steps at 79 a pass")  # 77 labels


@pytest.mark.parametrize(
    "given",
    [
        {"epochs": 7},
        {"learning_rate": 2e-5},
        {"head_learning_rate": 1e-5},
        {"early_stopping": {"patience": 1}},
        {"early_stopping": None},
    ],
)
def test_a_given_value_is_taken_and_has_no_reason(given: dict[str, Any]) -> None:
    config = TrainConfig.model_validate(given)
    recipe, reasons = student_recipe(config, "tiny", FACTS)
    (key,) = given
    assert recipe.model_dump()[key] == given[key]
    assert not any(reason.startswith(key) for reason in reasons)
    assert len(reasons) == 3


def test_a_complete_config_needs_no_facts() -> None:
    given = {"epochs": 2, "learning_rate": 1e-3, "head_learning_rate": 1e-3, "early_stopping": None}
    recipe, reasons = student_recipe(TrainConfig.model_validate(given), "tiny", Facts())
    assert reasons == {}
    assert recipe.model_dump() == TrainConfig.model_validate(given).model_dump()


def test_what_follows_from_a_given_value_follows_from_it() -> None:
    given = TrainConfig(epochs=40, learning_rate=2e-5)
    recipe, _ = student_recipe(given, "tiny", FACTS)
    assert recipe.head_learning_rate == 6e-4
    assert recipe.early_stopping is not None
    assert recipe.early_stopping.patience == 20


@pytest.mark.parametrize(
    ("steps", "student", "teacher"),
    [
        (1, (60, ", no more"), (30, ", no more")),
        (50, (30, ""), (6, "")),
        (63, (24, ""), (5, "")),
        (1000, (4, ", no fewer"), (3, ", no fewer")),
    ],
)
def test_epochs_follow_from_the_steps_of_a_pass(
    steps: int, student: tuple[int, str], teacher: tuple[int, str]
) -> None:
    for length, (epochs, bound) in ((STUDENT, student), (TEACHER, teacher)):
        assert epochs_of(steps, 1, length) == (epochs, f"{length.steps:,} steps at {steps:,} a pass{bound}")


def test_more_tasks_have_more_steps_but_not_in_proportion() -> None:
    assert epochs_of(100, 1, STUDENT) == (15, "1,500 steps at 100 a pass")
    assert epochs_of(400, 4, STUDENT) == (8, "3,000 steps (1,500 × √4) at 400 a pass")


@pytest.mark.parametrize(
    ("width", "rate"),
    [(32, 1e-3), (64, 6e-4), (128, 3e-4), (312, 1.2e-4), (384, 1e-4), (768, 5e-5), (4096, 1e-5)],
)
def test_wider_models_have_lower_rates(width: int, rate: float) -> None:
    assert learning_rate_of(ModelFacts(width)) == (rate, f"width {width}")


def test_adapters_have_a_higher_rate_and_heads_the_same_one() -> None:
    assert learning_rate_of(ModelFacts(768), adapters=True) == (5e-4, "width 768 × 10 for adapters")
    facts = Facts({"mood": TaskFacts(2, False, 320, 320, 0.5)}, {"tiny": ModelFacts(768)})
    whole, adapters = (
        student_recipe(TrainConfig(lora=lora), "tiny", facts)[0] for lora in (None, LoraConfig())
    )
    assert adapters.learning_rate == 10 * whole.learning_rate
    assert adapters.head_learning_rate == whole.head_learning_rate


@pytest.mark.parametrize(("rate", "heads"), [(1e-5, 3e-4), (2.9e-4, 8.7e-3), (1e-3, 2e-2), (5e-2, 5e-2)])
def test_heads_learn_faster_and_never_slower_than_the_encoder(rate: float, heads: float) -> None:
    assert head_rate_of(rate)[0] == heads


def test_patience_is_half_of_the_epochs() -> None:
    assert [patience_of(epochs)[0] for epochs in (1, 12, 16, 30)] == [3, 6, 8, 15]


@pytest.mark.parametrize("batch_size", [1, 7, 32, 1000])
def test_steps_of_a_pass_are_those_of_the_schedule(batch_size: int) -> None:
    counts = {"a": 100, "b": 33, "c": 7}
    schedule = Schedule({name: np.full(n, 9) for name, n in counts.items()}, batch_size, 1.0, 0)
    assert steps_of_pass(list(counts.values()), batch_size) == schedule.steps_per_epoch


def test_sgd_without_a_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"students.tiny.train: `learning_rate` is missing"):
        config_of(students={"tiny": {"model": "tiny", "train": {"optimizer": "sgd"}}})


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize(
    ("task", "expected", "reason"),
    [
        ("movies", (2.0, 0.3, 0.7), "2 labels, the most frequent 51 %"),
        ("intents", (1.0, 0.5, 0.5), "77 labels, the most frequent 2 %"),
        ("words", (1.0, 0.5, 0.5), "9 labels, the most frequent 83 %"),
        ("answers", (1.0, 0.5, 0.5), "a place in a text"),
        ("strength", (2.0, 0.3, 0.7), "a number"),
    ],
)
def test_the_loss_follows_from_the_labels(
    task: str, expected: tuple[float, float, float], reason: str
) -> None:
    loss, reasons = task_loss(LossConfig(), task, FACTS)
    assert (loss.temperature, loss.hard, loss.soft) == pytest.approx(expected)
    assert reasons == dict.fromkeys(("temperature", "hard", "soft"), reason)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"hard": 0.5}, (2.0, 5 / 12, 7 / 12)),  # beside the derived 0.7
        ({"soft": 0.1}, (2.0, 0.75, 0.25)),
        ({"hard": 0.0}, (2.0, 0.0, 1.0)),
        ({"hard": 1.0, "soft": 3.0, "temperature": 5.0}, (5.0, 0.25, 0.75)),
        ({"temperature": 5.0, "task_temperatures": {"movies": 1.5}}, (1.5, 0.3, 0.7)),
        ({"task_temperatures": {"words": 1.5}}, (2.0, 0.3, 0.7)),
    ],
)
def test_a_given_loss_is_taken(given: dict[str, Any], expected: tuple[float, float, float]) -> None:
    loss, reasons = task_loss(LossConfig.model_validate(given), "movies", FACTS)
    assert (loss.temperature, loss.hard, loss.soft) == pytest.approx(expected)
    assert not reasons.keys() & given.keys()


# ---------------------------------------------------------------- whole configs


def test_a_config_of_tasks_teachers_and_students_has_every_value() -> None:
    resolved = resolve_config(config_of(), FACTS)
    assert set(resolved.derived()) == {
        *(f"teachers.big.fine_tune.{key}" for key in ("epochs", "learning_rate", "head_learning_rate")),
        "teachers.big.fine_tune.early_stopping.patience",
        *(f"students.tiny.train.{key}" for key in ("epochs", "learning_rate", "head_learning_rate")),
        "students.tiny.train.early_stopping.patience",
        *(f"students.tiny.loss.{task}.{key}" for task in TASKS for key in ("hard", "soft", "temperature")),
    }
    assert resolved.derived()["students.tiny.train.early_stopping.patience"] == 4
    assert resolved.derived()["students.tiny.loss.words.hard"] == 0.5


def test_a_students_own_keys_come_before_what_is_derived() -> None:
    own = {"model": "tiny", "train": {"epochs": 9}, "loss": {"temperature": 3.0}}
    settings = student_settings(config_of(students={"tiny": own}), "tiny", FACTS)
    assert settings.train.epochs == 9
    assert "epochs" not in settings.reasons
    assert {loss.temperature for loss in settings.loss.tasks.values()} == {3.0}


def test_early_stopping_is_on_and_null_turns_it_off() -> None:
    on, off = (
        student_settings(config_of(train=train), "tiny", FACTS).train.early_stopping
        for train in ({}, {"early_stopping": None})
    )
    assert on is not None
    assert off is None


# ---------------------------------------------------------------- stages

PARTS: list[dict[str, Any]] = [
    {"loss": {"hidden": 1}},
    {"loss": {"soft": 3, "hidden": 1}},
    {"loss": {"hard": 2}},
]


def stages_of(**sections: Any) -> tuple[StudentStage, ...]:
    return student_settings(config_of(**sections), "tiny", FACTS).stages


@pytest.mark.parametrize(
    ("given", "total", "expected"),
    [
        ([None, None, None], 10, [3, 3, 4]),
        ([None, 4, None], 10, [3, 4, 3]),
        ([5, 5], 3, [5, 5]),
        ([9, None, None], 10, [9, 1, 1]),
        ([], 10, []),
    ],
)
def test_stages_share_the_epochs_that_none_names(
    given: list[int | None], total: int, expected: list[int]
) -> None:
    lengths = stage_epochs(given, total)
    assert [epochs for epochs, _ in lengths] == expected
    assert [why is not None for _, why in lengths] == [epochs is None for epochs in given]


def test_stages_have_losses_lengths_and_rates_of_their_own() -> None:
    train = {"epochs": 9, "learning_rate": 1e-4, "head_learning_rate": 1e-3}
    parts = [
        {**PARTS[0], "learning_rate": 5e-4, "epochs": 4},
        PARTS[1],
        {**PARTS[2], "head_learning_rate": 1e-2},
    ]
    own = student_settings(config_of(train=train, stages=parts), "tiny", FACTS)
    assert [stage.epochs for stage in own.stages] == [4, 2, 3]
    assert [stage.learning_rate for stage in own.stages] == [5e-4, 1e-4, 1e-4]
    assert [stage.head_learning_rate for stage in own.stages] == [1e-3, 1e-3, 1e-2]
    weights = [
        (loss.hard, loss.soft, loss.hidden) for loss in (stage.loss.tasks["movies"] for stage in own.stages)
    ]
    assert weights == [(0, 0, 1), (0, 0.75, 0.25), (1, 0, 0)]
    assert own.train.epochs == 9
    assert "epochs" not in own.reasons
    assert own.hidden


def test_a_stage_takes_each_tasks_temperature_unless_it_has_one() -> None:
    plain, hot = stages_of(stages=[{"loss": {"soft": 1}}, {"loss": {"soft": 1, "temperature": 7}}])
    assert {name: loss.temperature for name, loss in plain.loss.tasks.items()} == {
        "movies": 2,
        "intents": 1,
        "words": 1,
        "answers": 1,
        "strength": 2,
    }
    assert {loss.temperature for loss in hot.loss.tasks.values()} == {7}


def test_a_stage_without_a_loss_has_the_students() -> None:
    own = student_settings(config_of(stages=[PARTS[0], {}], loss={"annealing": "linear"}), "tiny", FACTS)
    assert own.stages[1].loss == own.loss
    assert (own.stages[0].loss.annealing, own.stages[1].loss.annealing) == ("constant", "linear")


def test_the_epochs_of_all_stages_are_those_of_the_training_and_patience_fits_the_last() -> None:
    parts = [{**part, "epochs": epochs} for part, epochs in zip(PARTS, (30, 20, 8), strict=True)]
    own = student_settings(config_of(stages=parts), "tiny", FACTS)
    assert own.train.epochs == 58
    assert own.train.early_stopping is not None
    assert own.train.early_stopping.patience == 4
    derived = resolve_config(config_of(stages=parts), FACTS).derived()
    assert derived["students.tiny.train.epochs"] == 58
    shared = resolve_config(config_of(stages=PARTS, train={"epochs": 7}), FACTS).derived()
    assert shared["students.tiny.stages.0.epochs"] == 2


def test_a_students_own_stages_replace_the_runs() -> None:
    students = {
        "tiny": {"model": "tiny"},
        "flat": {"model": "tiny", "stages": []},
        "own": {"model": "tiny", "stages": [{"loss": {"soft": 1}}]},
    }
    config = config_of(students=students, stages=PARTS)
    lengths = {name: len(student_stages(config, name) or ()) for name in students}
    assert lengths == {"tiny": 3, "flat": 0, "own": 1}


def uses_hidden(facts: Facts = FACTS, **sections: Any) -> bool:
    return bool(resolve_config(config_of(**sections), facts).hidden)


def test_hidden_targets_are_wanted_where_a_loss_reads_them() -> None:
    assert uses_hidden(stages=PARTS)
    assert not uses_hidden(stages=[{"loss": {"soft": 1}}, {}])
    assert uses_hidden(loss={"hidden": 0.5})
    assert not uses_hidden(loss={"hidden": 0.5}, stages=[{"loss": {"soft": 1}}])


# ---------------------------------------------------------------- derived stages

COUNTED = replace(
    FACTS,
    tasks={name: replace(task, words=10_000) for name, task in TASKS.items()},
    teachers={name: ModelFacts(384) for name in config_of().teachers},
)
"""Six teachers of width 384, two of the first task: 6 × 384 × 2 bytes × 10,000 words."""


def writes(labelled: int, examples: int = 3000) -> Facts:
    """The first task writes, with references for some of its examples."""
    own = TaskFacts(None, False, examples, labelled, None, writes=True)
    return replace(FACTS, tasks={**TASKS, "movies": own})


def test_where_sources_have_no_reference_the_last_half_is_on_references_alone() -> None:
    own = student_settings(config_of(train={"epochs": 5}), "tiny", writes(labelled=1000))
    first, last = own.stages
    assert own.stages_reason == "references last"
    assert (first.epochs, last.epochs) == (3, 2)
    assert first.loss == own.loss
    assert (first.loss.tasks["movies"].text, last.loss.tasks["movies"].text) == (0.5, 0.0)
    assert last.loss.tasks["intents"] == own.loss.tasks["intents"], "a task of another kind goes on as before"


@pytest.mark.parametrize(
    ("labelled", "sections"),
    [
        (3000, {}),
        (0, {}),
        (1000, {"train": {"epochs": 1}}),
        (1000, {"stages": []}),
    ],
)
def test_without_such_sources_or_references_it_is_one_part(labelled: int, sections: dict[str, Any]) -> None:
    assert student_settings(config_of(**sections), "tiny", writes(labelled)).stages == ()


def test_a_stage_may_have_a_share_of_texts_of_its_own() -> None:
    parts = [{"loss": {"hard": 1, "text": 1}}, {"loss": {"hard": 1}}, {"loss": {"hard": 1, "text": 0}}]
    own = student_settings(config_of(stages=parts), "tiny", writes(labelled=1000))
    assert [stage.loss.tasks["movies"].text for stage in own.stages] == [1, 0.5, 0]
    assert {stage.loss.tasks["intents"].text for stage in own.stages} == {0}, "it writes no texts"


def test_half_of_the_epochs_are_on_hidden_states() -> None:
    own = student_settings(config_of(), "tiny", COUNTED)
    first, second = own.stages
    assert own.stages_reason == "half of the epochs, on hidden targets of about 46 MB"
    assert (first.epochs, second.epochs, own.train.epochs) == (4, 5, 9)
    assert {(loss.hard, loss.soft, loss.hidden) for loss in first.loss.tasks.values()} == {(0, 0, 1)}
    assert second.loss == own.loss
    assert (first.learning_rate, second.head_learning_rate) == (3e-4, 9e-3)
    assert own.train.early_stopping is not None
    assert own.train.early_stopping.patience == 3
    assert own.hidden
    derived = resolve_config(config_of(), COUNTED).derived()
    assert derived["students.tiny.stages.0.epochs"] == 4


def test_what_the_config_gives_is_not_derived() -> None:
    assert student_settings(config_of(stages=[]), "tiny", COUNTED).stages == ()
    joint = student_settings(config_of(loss={"hidden": 1}), "tiny", COUNTED)
    assert (joint.stages, joint.stages_reason, joint.hidden) == ((), None, True)
    students = {"tiny": {"model": "tiny", "stages": []}}
    assert not uses_hidden(COUNTED, students=students)


@pytest.mark.parametrize(
    ("facts", "note"),
    [
        (
            replace(COUNTED, tasks={**COUNTED.tasks, "words": replace(ENTITIES, words=20_000_000)}),
            "tiny has no stage on hidden states: hidden targets would take 15 GB, more than 8",
        ),
        (
            replace(COUNTED, students={"tiny": ModelFacts(128, by_word=False)}),
            "tiny has no stage on hidden states: the hidden states of a model cannot be read word by word",
        ),
    ],
)
def test_where_hidden_targets_cannot_be_there_is_one_stage_and_a_note(facts: Facts, note: str) -> None:
    own = student_settings(config_of(), "tiny", facts)
    assert own.stages == ()
    assert note in own.notes
    assert not own.hidden


@pytest.mark.parametrize(("epochs", "stages"), [(8, 0), (9, 2), (20, 2)])
def test_a_training_shorter_than_the_derived_length_is_in_one_part(epochs: int, stages: int) -> None:
    """3,354 steps at 390 a pass are 9 epochs."""
    own = student_settings(config_of(train={"epochs": epochs}), "tiny", COUNTED)
    assert len(own.stages) == stages
    assert not any("hidden" in note for note in own.notes)


def test_nothing_is_derived_of_texts_that_nobody_counted() -> None:
    assert student_settings(config_of(), "tiny", FACTS).stages == ()


def test_hidden_is_normalised_with_the_others() -> None:
    loss, reasons = task_loss(LossConfig(hidden=1), "movies", FACTS)
    assert (loss.hard, loss.soft, loss.hidden) == (0.15, 0.35, 0.5)
    assert set(reasons) == {"temperature", "hard", "soft"}
    given = student_settings(config_of(loss={"hard": 1, "soft": 1, "hidden": 2}), "tiny", FACTS)
    assert (given.loss.tasks["movies"].hidden, given.loss.tasks["movies"].soft) == (0.5, 0.25)
    assert "loss weights of tiny normalised to sum to 1: hard 0.25, soft 0.25, hidden 0.5" in given.notes


@pytest.mark.parametrize(
    ("stages", "cause"),
    [
        ([PARTS[0]], "stages: the last one has neither hard nor soft loss"),
        ([PARTS[2], PARTS[0]], "stages: the last one has neither hard nor soft loss"),
        ([{"loss": {}}], "stages.0.loss: give `hard`, `soft` or `hidden` a weight above 0"),
        ([{"los": {"hard": 1}}], "stages.0.los"),
        ([{"loss": {"hard": 1, "hiden": 1}}], "stages.0.loss.hiden"),
        ([{"epochs": 0}], "stages.0.epochs"),
    ],
)
def test_stages_that_cannot_work_are_refused(stages: list[dict[str, Any]], cause: str) -> None:
    with pytest.raises(ConfigError) as error:
        config_of(stages=stages)
    assert cause in error.value.cause
    with pytest.raises(ConfigError) as error:
        config_of(students={"tiny": {"model": "tiny", "stages": stages}})
    assert f"students.tiny.{cause}" in error.value.cause


def test_a_student_of_some_tasks_is_derived_from_these() -> None:
    students: dict[str, dict[str, Any]] = {
        "tiny": {"model": "tiny"},
        "own": {"model": "tiny", "tasks": ["movies"]},
    }
    config = config_of(students=students, loss={"task_weights": {"movies": 3.0}}, stages=PARTS)
    facts = replace(FACTS, students={**FACTS.students, "own": FACTS.students["tiny"]})
    resolved = resolve_config(config, facts)
    whole, own = (resolved.students[name] for name in ("tiny", "own"))
    assert config.tasks_of("tiny") == tuple(config.tasks)
    assert list(own.lengths) == list(own.loss.tasks) == list(own.loss_reasons) == ["movies"]
    assert own.loss.tasks["movies"].weight == 1.0
    assert whole.loss.tasks["movies"].weight > 1.0
    alone = replace(facts, tasks={"movies": facts.tasks["movies"]})
    recipe, _ = student_recipe(TrainConfig(), "own", alone)
    assert own.train.batch_size == recipe.batch_size
    only = config_of(students={"own": students["own"]}, stages=PARTS)
    assert resolve_config(only, facts).hidden == {"movies"}, "other teachers make no hidden targets"
    assert resolved.hidden == set(config.tasks)
    plain = config_of(students={"own": {**students["own"], "stages": []}}, train={"epochs": None})
    steps = -(-facts.tasks["movies"].examples // 32)
    assert resolve_config(plain, facts).students["own"].train.epochs == max(4, min(60, -(-1500 // steps)))
