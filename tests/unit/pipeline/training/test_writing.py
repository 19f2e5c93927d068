"""Training on texts: references, teachers' texts, and their distributions along them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from pipeline.batch import Drawn
from pipeline.config.generation import TokenTargetsConfig
from pipeline.config.recipe import Patience, StudentRecipe
from pipeline.data.splits import TaskData, read_examples
from pipeline.losses import ON_POLICY, LossWeights
from pipeline.models import open_tokenizer, vocabulary
from pipeline.predictor import Predictor
from pipeline.soft import Soft, Sparse
from pipeline.tasks import Task
from pipeline.tasks.label_columns import Column
from pipeline.tasks.pairs import pairs
from pipeline.text_arrays import text_array
from pipeline.training.feed import Feed, TaskSet
from pipeline.training.loop import Trainer
from pipeline.training.stage import LossPlan, one_stage
from pipeline.training.step import Aggregation, WithLoss, Workers, accumulate, forced_scores
from pipeline.training.written import WrittenTexts
from students.student import MultiTaskStudent, build_student
from tests.tiny_writers import SOURCES, TARGETS, writer, writing_task

torch.set_num_threads(1)
FULL = torch.autocast("cpu", enabled=False)
OTHERS = ["un chat", "un chien", "un grand chien", "le chien", "rouge"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return writer("t5", tmp_path_factory.mktemp("t5"))


def data_of(task: Task, targets: Sequence[str | None] = TARGETS) -> TaskData:
    columns = {"source": Column(SOURCES), "target": Column(list(targets))}
    labelled = read_examples(task, "test", {"source": Column(SOURCES), "target": Column(TARGETS)})
    train = read_examples(task, "train", columns)
    return TaskData(task, {"train": train, "validation": labelled, "test": labelled})


class Forced:
    """Token targets of one teacher that has been forced along some texts, by key."""

    def __init__(self, folder: Path, task: Task, texts: Sequence[str], ids: int) -> None:
        inputs = {"source": SOURCES, "text": list(texts)}
        self.keys = pairs(task, SOURCES, list(texts)).keys
        self.soft, *_ = Predictor(folder, task).force(inputs, TokenTargetsConfig(ids=ids))

    def targets(self, batch: Drawn) -> Soft:
        rows = np.array([int(np.flatnonzero(self.keys == key)[0]) for key in batch.keys])
        return self.soft.take(rows)


def student_of(folder: Path, task: Task) -> MultiTaskStudent:
    return build_student(folder, [task], dropout=0.0).train()


def step_of(sets: TaskSet, student: MultiTaskStudent, weights: LossWeights) -> dict[str, float]:
    """The loss terms of one step over all examples."""
    (step,) = Feed([sets], batch_size=len(SOURCES), tokens=4096).epoch(0)
    terms = accumulate(
        WithLoss(student), sets.task, step.batches, weights, sets.aggregation, step.normaliser, FULL
    )
    return {name: float(value) for name, value in terms.items()}


def with_tokens(folder: Path, task: Task, teachers: Sequence[Path], ids: int) -> TaskSet:
    sets = TaskSet.of(data_of(task), open_tokenizer(folder), written=WrittenTexts(), keyed=True)
    sources = [Forced(one, task, TARGETS, ids) for one in teachers]
    weights = torch.full((len(teachers),), 1 / len(teachers))
    return TaskSet(**{**vars(sets), "sources": sources, "aggregation": Aggregation("mean", weights)})


@torch.no_grad()
def logits_of(folder: Path, task: Task, source: str, target: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(P, V) logits of the model along a target, and (P,) its ids, by transformers' own shift."""
    words, model = open_tokenizer(folder), build_student(folder, [task]).model(task.name)
    batch = words([source], return_tensors="pt", return_token_type_ids=False)
    ids = torch.tensor([words(target)["input_ids"]])
    return model(**batch, labels=ids).logits[0], ids[0]


# ---------------------------------------------------------------- losses


def test_the_hard_loss_is_the_mean_cross_entropy_of_tokens(folder: Path) -> None:
    task = writing_task()
    sets = TaskSet.of(data_of(task), open_tokenizer(folder))
    terms = step_of(sets, student_of(folder, task), LossWeights({"hard": 1.0}, 1.0))
    losses = torch.cat(
        [
            cross_entropy(*logits_of(folder, task, *pair), reduction="none")
            for pair in zip(SOURCES, TARGETS, strict=True)
        ]
    )
    assert terms["hard"] == pytest.approx(float(losses.mean()), rel=1e-5)


@pytest.mark.parametrize("tokens", [1, 4096])
def test_scores_along_gold_texts_are_those_of_their_tokens(folder: Path, tokens: int) -> None:
    task = writing_task()
    rows = [logits_of(folder, task, *pair) for pair in zip(SOURCES, TARGETS, strict=True)]
    right = torch.cat([logits.argmax(dim=-1) == ids for logits, ids in rows])
    losses = torch.cat([cross_entropy(*row, reduction="none") for row in rows])
    encoded = TaskSet.of(data_of(task), open_tokenizer(folder)).validation
    scores = forced_scores(student_of(folder, task), task, encoded, tokens, Workers())
    assert scores["token_accuracy"] == pytest.approx(float(right.double().mean()))
    assert scores["perplexity"] == pytest.approx(float(losses.mean().exp()), rel=1e-5)


def test_smoothed_labels_are_pytorchs_over_the_whole_vocabulary_with_token_targets_too(folder: Path) -> None:
    task = writing_task()
    rows = [logits_of(folder, task, *pair) for pair in zip(SOURCES, TARGETS, strict=True)]
    losses = torch.cat([cross_entropy(*row, reduction="none", label_smoothing=0.2) for row in rows])
    for sets, terms in (
        (TaskSet.of(data_of(task), open_tokenizer(folder)), {"hard": 1.0}),
        (with_tokens(folder, task, [folder], ids=4), {"hard": 0.5, "soft": 0.5}),
    ):
        weights = LossWeights(terms, 1.0, label_smoothing=0.2)
        hard = step_of(sets, student_of(folder, task), weights)["hard"]
        assert hard == pytest.approx(float(losses.mean()), rel=1e-5)


def test_a_student_that_equals_its_teacher_has_no_soft_loss(folder: Path) -> None:
    task = writing_task()
    for ids in (1, 4):
        sets = with_tokens(folder, task, [folder], ids)
        terms = step_of(sets, student_of(folder, task), LossWeights({"hard": 0.5, "soft": 0.5}, 1.0))
        assert terms["soft"] == pytest.approx(0, abs=1e-5)
        assert terms["hard"] == pytest.approx(
            step_of(sets, student_of(folder, task), LossWeights({"hard": 1.0}, 1.0))["hard"], rel=1e-5
        ), "the label is an event of its own"


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_with_all_ids_the_soft_loss_is_that_of_whole_distributions(
    folder: Path, tmp_path: Path, temperature: float
) -> None:
    task, size = writing_task(), len(open_tokenizer(folder))
    teachers = [writer("t5", tmp_path / f"{seed}", seed) for seed in (1, 2)]
    sets = with_tokens(folder, task, teachers, ids=size)
    terms = step_of(sets, student_of(folder, task), LossWeights({"soft": 1.0}, temperature))
    total, count = 0.0, 0
    for source, target in zip(SOURCES, TARGETS, strict=True):
        own, ids = logits_of(folder, task, source, target)
        mixture = torch.stack(
            [(logits_of(one, task, source, target)[0] / temperature).softmax(-1) for one in teachers]
        ).mean(dim=0)
        logs = (own / temperature).log_softmax(-1)
        total += temperature**2 * float(kl_div(logs, mixture, reduction="sum"))
        count += len(ids)
    assert terms["soft"] == pytest.approx(total / count, rel=1e-3)


# ---------------------------------------------------------------- texts of teachers


def test_a_source_without_reference_learns_its_teachers_text(folder: Path) -> None:
    task, words = writing_task(), open_tokenizer(folder)
    data = data_of(task, [TARGETS[0], None, None, *TARGETS[3:]])
    texts = text_array([*OTHERS[:2], "", *OTHERS[3:]])
    sets = TaskSet.of(data, words, written=WrittenTexts((texts,), (0.0,), {"empty": 1}))
    assert len(sets.examples) == 4, "neither reference nor text: left out"
    assert sets.left_out == {"empty": 1}
    assert sets.texts is not None
    ids = sets.texts.draw(0, 0).tokens
    drawn = [words.decode(ids.take(np.array([row])).values, skip_special_tokens=True) for row in range(4)]
    assert drawn == [TARGETS[0], OTHERS[1], *TARGETS[3:]]
    assert len(TaskSet.of(data, words).examples) == 3, "a baseline learns from references alone"


def test_a_share_of_none_gives_references_alone_over_and_over(folder: Path) -> None:
    """Sources without reference take no part; the normaliser counts the references' tokens."""
    task, words = writing_task(), open_tokenizer(folder)
    targets = [TARGETS[0], None, TARGETS[2], None, None]
    sets = TaskSet.of(data_of(task, targets), words, written=WrittenTexts((text_array(OTHERS),), (0.5,)))
    feed = Feed([sets], batch_size=len(SOURCES), tokens=4096)
    for epoch in range(4):
        (step,) = feed.epoch(epoch, texts={task.name: 0.0})
        written = [
            words.decode(ids[ids >= 0], skip_special_tokens=True)
            for batch in step.batches
            if batch.tokens.target is not None
            for ids in batch.tokens.target
        ]
        assert sorted(set(written)) == sorted([TARGETS[0], TARGETS[2]])
        assert sorted(written.count(one) for one in set(written)) == [2, 3]
        assert step.normaliser == sum(len(words(one)["input_ids"]) for one in written)
    (mixed,) = feed.epoch(0)
    assert any("un chien" in words.decode(batch.labels) for batch in mixed.batches)


def test_vocabularies_are_told_apart(folder: Path, tmp_path: Path) -> None:
    from tests.tiny_writers import tokenizer

    same, other = vocabulary(open_tokenizer(folder)), tokenizer()
    assert vocabulary(open_tokenizer(writer("bart", tmp_path / "bart"))) == same
    other.add_tokens(["neu"])
    assert vocabulary(other) != same


# ---------------------------------------------------------------- texts of its own


def with_own_texts(folder: Path, teachers: Sequence[Path], share: float, ids: int) -> TaskSet:
    """References and, for all sources but the third, the student's own texts, with the teachers' targets along both."""
    task, own = writing_task(), [*OTHERS[:2], "", *OTHERS[3:]]
    written = WrittenTexts((text_array(own),), (share,), own=True)
    sets = TaskSet.of(data_of(task), open_tokenizer(folder), written=written, keyed=True)

    class Both:
        def __init__(self, teacher: Path) -> None:
            inputs = {"source": SOURCES * 2, "text": [*TARGETS, *(text or "le" for text in own)]}
            self.keys = pairs(task, inputs["source"], inputs["text"]).keys
            self.soft, *_ = Predictor(teacher, task).force(inputs, TokenTargetsConfig(ids=ids))

        def targets(self, batch: Drawn) -> Soft:
            rows = np.array([int(np.flatnonzero(self.keys == key)[0]) for key in batch.keys])
            return self.soft.take(rows)

    sources = [Both(one) for one in teachers]
    weights = torch.full((len(teachers),), 1 / len(teachers))
    return TaskSet(**{**vars(sets), "sources": sources, "aggregation": Aggregation("mean", weights)})


ALONG = LossWeights({"hard": 1.0, "soft": 0.0, ON_POLICY: 1.0}, 1.0)


def test_along_its_own_text_a_student_learns_the_teachers_divergence_and_no_label(
    folder: Path, tmp_path: Path
) -> None:
    task, teacher = writing_task(), writer("t5", tmp_path / "teacher", 1)
    sets = with_own_texts(folder, [teacher], 1.0, ids=len(open_tokenizer(folder)))
    terms = step_of(sets, student_of(folder, task), ALONG)
    apart, hard, count = 0.0, 0.0, 0
    for row, source in enumerate(SOURCES):
        text = TARGETS[row] if row == 2 else OTHERS[row]
        own, ids = logits_of(folder, task, source, text)
        count += len(ids)
        if row == 2:  # it wrote nothing there: the reference, by its label
            hard = float(cross_entropy(own, ids, reduction="sum"))
        else:
            target = logits_of(teacher, task, source, text)[0].softmax(-1)
            apart += float(kl_div(own.log_softmax(-1), target, reduction="sum"))
    assert terms[ON_POLICY] == pytest.approx(apart / count, rel=1e-3)
    assert terms["hard"] == pytest.approx(hard / count, rel=1e-4)
    assert terms["total"] == pytest.approx((apart + hard) / count, rel=1e-3)


def test_a_student_that_equals_its_teacher_has_nothing_to_learn_of_its_own_text(folder: Path) -> None:
    sets = with_own_texts(folder, [folder], 1.0, ids=4)
    terms = step_of(sets, student_of(folder, writing_task()), ALONG)
    assert terms[ON_POLICY] == pytest.approx(0, abs=1e-5)


def test_a_share_of_own_texts_leaves_references_their_hard_loss(folder: Path, tmp_path: Path) -> None:
    task, teacher = writing_task(), writer("t5", tmp_path / "teacher", 1)
    none = step_of(with_own_texts(folder, [teacher], 0.0, ids=4), student_of(folder, task), ALONG)
    alone = step_of(TaskSet.of(data_of(task), open_tokenizer(folder)), student_of(folder, task), ALONG_LABELS)
    assert none["hard"] == pytest.approx(alone["hard"], rel=1e-5)
    assert none[ON_POLICY] == 0


ALONG_LABELS = LossWeights({"hard": 1.0}, 1.0)


# ---------------------------------------------------------------- the loop


def recipe(**changes: Any) -> StudentRecipe:
    return StudentRecipe(
        **{
            "epochs": 6,
            "learning_rate": 3e-3,
            "head_learning_rate": 3e-3,
            "batch_size": 2,
            "precision": "fp32",
            "early_stopping": Patience(patience=6),
            **changes,
        }
    )


def trainer(folder: Path, to: Path, should_stop: Any = lambda: False, **changes: Any) -> Trainer:
    task, config = writing_task(), recipe(**changes)
    written = WrittenTexts((text_array(OTHERS),), (0.4,))
    sets = TaskSet.of(data_of(task), open_tokenizer(folder), written=written)
    feed = Feed([sets], config.batch_size, config.tokens_per_forward)
    return Trainer(
        build_student(folder, [task], dropout=0.1), feed, config, one_stage(config, LossPlan()), to,
        should_stop=should_stop,
    )  # fmt: skip


def test_an_interrupted_training_ends_with_the_same_weights(folder: Path, tmp_path: Path) -> None:
    whole = trainer(folder, tmp_path / "whole")
    whole.fit()
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == 8

    first = trainer(folder, tmp_path / "parts", stop)
    assert first.fit().status == "interrupted"
    second = trainer(folder, tmp_path / "parts")
    assert second.fit().status == whole.progress.status
    for name, tensor in whole.student.state_dict().items():
        assert torch.equal(tensor, second.student.state_dict()[name]), name
    along = {"translate/token_accuracy", "translate/perplexity"}
    expected = {"translate/chrf", "translate/skill", "macro/score", *along}
    assert expected <= whole.progress.kept.keys()


def test_a_model_learns_to_write_its_targets(folder: Path, tmp_path: Path) -> None:
    task = writing_task()
    config = recipe(epochs=80, learning_rate=1e-2, early_stopping=None)
    sets = TaskSet.of(data_of(task), open_tokenizer(folder))
    feed = Feed([sets], config.batch_size, config.tokens_per_forward)
    student = build_student(folder, [task], dropout=0.0)
    done = Trainer(student, feed, config, one_stage(config, LossPlan()), tmp_path)
    done.fit()
    assert done.progress.kept["translate/chrf"] > 0.9
    assert done.progress.kept["translate/token_accuracy"] > 0.9
    texts = done.predictions()["translate"]
    assert texts.shape == (len(SOURCES), 1)


def test_sparse_targets_are_stored_by_position(folder: Path) -> None:
    task = writing_task()
    soft = Forced(folder, task, TARGETS, ids=3).soft
    assert isinstance(soft, Sparse)
    assert soft.ids.values.shape[1] == 3
    total = np.exp(soft.log_probabilities.astype(np.float64)).sum(axis=1) + np.exp(
        soft.rest.astype(np.float64)
    )
    assert total == pytest.approx(np.ones(len(total)), abs=1e-4)
