"""What is labelled: soft and hidden targets that the store lacks, both out of one pass. Replicas: tests/integration/test_pool.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.batch import ABSENT, Examples, Ragged, content_keys
from pipeline.config.schema import ServingConfig
from pipeline.errors import BadTargetsError
from pipeline.models import hidden_layer
from pipeline.places import Patience
from pipeline.predictor import Predictor
from pipeline.soft import Dense, SoftTargets
from pipeline.tasks.spans import word_spans
from pipeline.tasks.text_classification import text_classification
from teachers import pool
from teachers.pool import Chunk, Labelled, Labelling, _fill_for_teacher
from teachers.spec import HiddenTargets, TeacherSpec
from teachers.store import Store
from teachers.store_key import hidden_key, store_key
from tests.conftest import TinyModel, texts_of

LABELS = ("bad", "good")
TASK = text_classification("mood", LABELS, 12, "accuracy")


def examples_of(texts: Sequence[str]) -> Examples:
    inputs = {"text": list(texts)}
    labels = Ragged.single(np.zeros(len(texts), dtype=np.int64))
    return Examples("mood", content_keys(TASK.kind.name, inputs), inputs, labels)


TRAIN = examples_of([*texts_of(0, 20), "word " * 20])
TEST = examples_of(texts_of(1, 10))


class OnePredictor:
    """A pool in this process, without Ray."""

    def __init__(self, spec: TeacherSpec, replicas: int, patience: Patience) -> None:
        self.spec, self.restarts = spec, 0

    def map(self, chunks: Sequence[Chunk]) -> Iterator[tuple[int, Labelled]]:
        layer = None if self.spec.hidden is None else self.spec.hidden.layer
        teacher = Predictor(Path(self.spec.model), TASK, layer=layer)
        for position, chunk in enumerate(chunks):
            yield position, teacher.label(chunk)


@pytest.fixture
def spec(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> TeacherSpec:
    monkeypatch.setattr(pool, "TeacherPool", OnePredictor)
    monkeypatch.setattr(pool, "CHUNK", 8)
    model = tiny_model("bert", LABELS)
    layer = hidden_layer(model, None, "teachers.big")
    hidden = HiddenTargets(hidden_key(model, TASK, "fp32", layer), layer)
    key = store_key(model, TASK, "fp32")
    return TeacherSpec("big", str(model), None, TASK, ServingConfig(), key, hidden=hidden)


def fill(store: Store, spec: TeacherSpec, hidden: Sequence[Examples] = (TRAIN,)) -> Labelling:
    return _fill_for_teacher(
        spec,
        [TRAIN, TEST],
        hidden,
        store=store,
        patience=Patience(),
        on_progress=lambda teacher, done, total: None,
        should_stop=lambda: False,
    )


def test_hidden_targets_of_train_come_with_the_soft_targets_of_all(spec: TeacherSpec, tmp_path: Path) -> None:
    store, hidden = Store(str(tmp_path / "both")), spec.hidden
    assert hidden is not None
    done = fill(store, spec)
    assert done.forwards == len(TRAIN) + len(TEST)
    assert len(store.missing(spec.key, np.concatenate([TRAIN.keys, TEST.keys]))) == 0
    assert len(store.missing(hidden.key, TRAIN.keys)) == 0
    assert len(store.missing(hidden.key, TEST.keys)) == len(TEST)
    counts = np.array([len(word_spans(text)) for text in TRAIN.inputs["text"]])
    view = store.view(hidden.key, TRAIN.keys, hidden.layer, counts)
    stored = view.gather(TRAIN.keys)
    _, expected, _ = Predictor(Path(spec.model), TASK, layer=hidden.layer).label(TRAIN.inputs)
    assert expected is not None
    np.testing.assert_allclose(stored.values, expected.values, rtol=2e-3, atol=2e-3)
    last = stored.take(np.array([len(TRAIN) - 1])).values  # 20 words, of which 12 tokens have room for fewer
    absent = (last == ABSENT).all(axis=1)
    assert absent.tolist() == sorted(absent.tolist())
    assert 0 < absent.sum() < 20
    # the soft targets are those of a labelling without hidden targets, bit for bit
    plain, alone = Store(str(tmp_path / "plain")), replace(spec, hidden=None)
    fill(plain, alone)
    one, other = (s.view(spec.key, TRAIN.keys, LABELS).gather(TRAIN.keys).values for s in (store, plain))
    assert np.array_equal(one, other)


def test_a_store_filled_before_keeps_its_soft_targets(spec: TeacherSpec, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    fill(store, replace(spec, hidden=None))
    before = sorted((tmp_path / spec.key).glob("shard-*"))
    assert fill(store, spec).forwards == len(TRAIN)
    assert sorted((tmp_path / spec.key).glob("shard-*")) == before
    assert fill(store, spec).forwards == 0
    more = fill(store, spec, [TRAIN, TEST])
    assert more.forwards == len(TEST)
    assert sorted((tmp_path / spec.key).glob("shard-*")) == before


def test_hidden_targets_of_another_layer_are_others(spec: TeacherSpec) -> None:
    folder = Path(spec.model)
    first, last = (hidden_layer(folder, index, "teachers.big") for index in (1, 2))
    assert hidden_layer(folder, None, "teachers.big") == first
    keys = {hidden_key(folder, TASK, "fp32", layer) for layer in (first, last)}
    keys |= {hidden_key(folder, TASK, "bf16", first), hidden_key(folder, TASK, "fp32", first, max_length=9)}
    assert len(keys) == 4
    assert spec.key not in keys


def test_a_number_beyond_float16_is_refused_by_its_dimension(spec: TeacherSpec, tmp_path: Path) -> None:
    hidden = spec.hidden
    assert hidden is not None
    values = np.zeros((2, hidden.layer.size), dtype=np.float32)
    values[1, 3] = 1e6
    vectors = Dense(Ragged(values, np.array([0, 2])), hidden.layer)
    with pytest.raises(BadTargetsError, match="dimension 3 of layer 1"):
        Store(str(tmp_path)).append(hidden.key, SoftTargets(TRAIN.keys[:1], vectors))
