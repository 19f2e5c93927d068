"""Training on recordings: which are learnt, which of the teachers' transcripts, and along which tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from pipeline.config.recipe import StudentRecipe
from pipeline.config.resolved import TaskAggregation
from pipeline.data.splits import TaskData, read_examples
from pipeline.errors import DataError
from pipeline.losses import LossWeights
from pipeline.models import open_tokenizer
from pipeline.soft import SoftTargets, Texts
from pipeline.tasks.label_columns import Column
from pipeline.text_arrays import text_array
from pipeline.training.feed import LONGER, Feed, TaskSet
from pipeline.training.loop import Trainer
from pipeline.training.stage import LossPlan, one_stage
from pipeline.training.step import WithLoss, Workers, accumulate, forced_scores
from pipeline.training.written import far_texts, written_texts
from students.student import build_student
from teachers.store import Store
from tests.tiny_speech import recorded, speech_task, whisper

torch.set_num_threads(1)
TEXTS = ["la ti do", "re", "do re la ti", "ti la"]
LONG = "la ti do re la ti do re la"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whisper(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return recorded(tmp_path_factory.mktemp("recordings"), [*TEXTS, LONG])


def data_of(clips: Sequence[str], texts: Sequence[str | None]) -> TaskData:
    columns = {"audio": Column(list(clips)), "text": Column(list(texts))}
    train = read_examples(speech_task(), "train", columns)
    return TaskData(speech_task(), {"train": train, "validation": train, "test": train})


def test_recordings_beyond_the_window_are_left_out_and_counted(folder: Path, clips: list[str]) -> None:
    tokenizer = open_tokenizer(folder)
    one = TaskSet.of(data_of(clips, [*TEXTS, LONG]), tokenizer)
    assert len(one.examples) == 4
    assert one.left_out == {LONGER: 1}
    assert np.diff(one.validation.sequences).tolist() == [1, 1, 1, 1, 2], (
        "those that are scored are read whole"
    )
    with pytest.raises(DataError, match="all 1 recordings of train are longer than the 2 s"):
        TaskSet.of(data_of(clips[4:], [LONG]), tokenizer)


def test_the_loss_is_that_of_the_text_after_the_prompt(folder: Path, clips: list[str]) -> None:
    task, tokenizer = speech_task(), open_tokenizer(folder)
    one = TaskSet.of(data_of(clips, [*TEXTS, LONG]), tokenizer)
    student = build_student(folder, [task]).eval()
    (step,) = Feed([one], 4, 10_000).epoch(0)
    weights = LossWeights({"hard": 1.0}, 1.0)
    full = torch.autocast("cpu", enabled=False)
    sums = accumulate(WithLoss(student), task, step.batches, weights, None, step.normaliser, full)
    losses = []
    for batch in step.batches:
        target = batch.tokens.target
        assert target is not None
        prompt = torch.tensor([tokenizer.prefix_tokens] * len(target))
        whole = torch.cat((prompt, target.clamp(min=0)), dim=1)
        logits = student.model("speech")(
            input_features=batch.tokens.inputs["input_features"], decoder_input_ids=whole
        ).logits[:, 1:-1]
        losses.append(float(cross_entropy(logits.transpose(1, 2), target, reduction="sum").detach()))
    assert float(sums["total"]) == pytest.approx(sum(losses) / step.normaliser, rel=1e-5)


def test_scores_along_texts_are_of_recordings_within_the_window(folder: Path, clips: list[str]) -> None:
    task, tokenizer = speech_task(), open_tokenizer(folder)
    student = build_student(folder, [task])
    inputs = {"source": clips, "target": [*TEXTS, LONG]}
    scores = forced_scores(student, task, task.head.encode(tokenizer, inputs), 10_000, Workers())
    short = {name: column[:4] for name, column in inputs.items()}
    assert scores == forced_scores(student, task, task.head.encode(tokenizer, short), 10_000, Workers())
    assert math.isfinite(scores["perplexity"])


def test_a_student_keeps_the_chosen_layers_and_what_its_teacher_never_writes(folder: Path) -> None:
    from pipeline.config.schema import StackLayersConfig

    student = build_student(folder, [speech_task()], layers=StackLayersConfig(decoder=1)).model("speech")
    teacher = build_student(folder, [speech_task()]).model("speech")
    assert (student.config.encoder_layers, student.config.decoder_layers) == (2, 1)
    mine, theirs = (one.model.decoder.layers[-1].fc1.weight for one in (student, teacher))
    assert torch.equal(mine, theirs), "the last layer is kept"
    assert student.generation_config.to_dict() == teacher.generation_config.to_dict()


def test_transcripts_far_from_the_reference_or_the_others_are_not_learnt() -> None:
    texts = ["a b c d", "a b x y", "a b c d", "a b c d"]
    references = ["a b c d", "a b c d", "", ""]
    teachers = [["", "", "a b c d", "a b c d"], ["", "", "a b c e", "x y z w"]]
    faults = far_texts(texts, references, teachers, 0.3)
    assert {name: has.tolist() for name, has in faults.items()} == {
        "with a word error rate above 30% to the reference": [False, True, False, False],
        "with a word error rate above 30% to the other teachers": [False, False, False, True],
    }
    alone = far_texts(texts, references, teachers[:1], 0.3)
    assert not any(has[2:].any() for has in alone.values()), (
        "nothing is known of the text of a single teacher"
    )


def test_the_limit_is_the_aggregations(clips: list[str], tmp_path: Path) -> None:
    data, store = data_of(clips[:4], [*TEXTS[:3], None]), Store(str(tmp_path))
    written = {"0a": ["la ti do", "re", "do re", "ti la"], "0b": ["la ti la", "re", "do la", "do do"]}
    for key, texts in written.items():
        ones = np.ones((4, 1))
        own = Texts(text_array([[text] for text in texts]), ones.astype(np.float32), ones.astype(np.int32))
        store.append(key, SoftTargets(data.splits["train"].keys, own))
    keys = {"a": "0a", "b": "0b"}
    for limit, learnt in ((0.3, ["la ti do", "re", "", ""]), (None, ["la ti do", "re", "do re", "ti la"])):
        together = TaskAggregation("consensus", {"a": 0.6, "b": 0.4}, max_word_error=limit)
        own_texts = written_texts(data, keys, together, 0.5, store)
        assert own_texts.texts[0].tolist() == learnt
        assert sum(own_texts.left_out.values()) == learnt.count("")


def test_a_training_goes_on_where_it_stopped(folder: Path, clips: list[str], tmp_path: Path) -> None:
    recipe = StudentRecipe(
        epochs=3,
        batch_size=2,
        learning_rate=1e-3,
        head_learning_rate=1e-3,
        early_stopping=None,
        precision="fp32",
    )
    task_set = TaskSet.of(data_of(clips, [*TEXTS, LONG]), open_tokenizer(folder))

    def fit(name: str, steps: int | None) -> dict[str, torch.Tensor]:
        left = iter(range(steps or 1_000))
        student = build_student(folder, [speech_task()])
        stop = (lambda: next(left, None) is None) if steps else (lambda: False)
        stages = one_stage(recipe, LossPlan())
        Trainer(student, Feed([task_set], 2, 10_000), recipe, stages, tmp_path / name, should_stop=stop).fit()
        return student.state_dict()

    whole = fit("whole", None)
    fit("stopped", 2)
    for name, tensor in fit("stopped", None).items():
        assert torch.equal(tensor, whole[name]), name
