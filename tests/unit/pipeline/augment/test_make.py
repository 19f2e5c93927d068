"""Variants of training texts: what becomes of them, that none leaks out of validation or test, and the same ones every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.augment.make import (
    Dropout,
    Method,
    Synonyms,
    augmented,
    chosen,
    expected_variants,
    with_variants,
)
from pipeline.augment.masked import Masked
from pipeline.batch import Examples
from pipeline.check import summary
from pipeline.config.data import AugmentConfig, MaskedConfig
from pipeline.config.fields import Split
from pipeline.config.load import parse_config
from pipeline.data.splits import TaskData, read_examples
from pipeline.data.transfer import load_tasks
from pipeline.errors import InterruptedRunError
from pipeline.prepare import augment_inputs, prepare
from pipeline.tasks import Task
from pipeline.tasks.label_columns import Column
from pipeline.tasks.multi_label import multi_label
from pipeline.tasks.question_answering import question_answering
from pipeline.tasks.regression import regression
from pipeline.tasks.text_classification import text_classification
from pipeline.tasks.token_classification import token_classification
from tests.conftest import CsvTask, TinyFillMask, TinyRun, texts_of

LABELS = ("x", "y")
TEXTS = text_classification("texts", LABELS, 64)
PAIR = ("text", "text_pair")
Columns = Mapping[str, Sequence[Any]]
NOTHING: Columns = {}
PLAIN = AugmentConfig.model_validate({"dropout": {}})
KEEPING = AugmentConfig.model_validate({"dropout": {}, "keep_labels": True})


def examples_of(task: Task, columns: Columns) -> Examples:
    return read_examples(
        task,
        "train",
        {role: Column(values) for role, values in columns.items()}
        or dict.fromkeys(task.reading.fields, Column([])),
    )


def data_of(task: Task, train: Columns, validation: Columns = NOTHING, test: Columns = NOTHING) -> TaskData:
    given: dict[Split, Columns] = {"train": train, "validation": validation, "test": test}
    return TaskData(task, {split: examples_of(task, columns) for split, columns in given.items()})


def texts(*values: str, **held_out: Columns) -> TaskData:
    labels = [LABELS[i % 2] for i in range(len(values))]
    return data_of(TEXTS, {"text": list(values), "label": labels}, **held_out)


def made(data: TaskData, *methods: Method, augment: AugmentConfig = PLAIN) -> Examples:
    """The variants that joined train."""
    train = augmented(data, augment, methods).splits["train"]
    return train.take(np.arange(len(data.splits["train"]), len(train)))


SENTENCES = tuple(dict.fromkeys(texts_of(0, 20) + texts_of(1, 20)))
COMMON = ("the", "a", "film", "story", "is", "was", "very", "and", "of", "to")
SWAP = Synonyms(dict.fromkeys(COMMON, ("alpha", "beta", "gamma")), 3, 0.4)


# ---------------------------------------------------------------- the same ones every time


@pytest.mark.parametrize(
    "method", [Dropout(2, 0.2), replace(SWAP, variants=2)], ids=lambda method: method.name
)
def test_order_does_not_matter_and_more_variants_keep_those_of_fewer(method: Any) -> None:
    forwards, backwards = texts(*SENTENCES), texts(*SENTENCES[::-1])
    variants = made(forwards, method)
    assert len(variants) > len(SENTENCES)
    assert set(variants.keys) == set(made(backwards, method).keys)
    alone = [made(texts(sentence), method) for sentence in SENTENCES]
    assert set(variants.keys) <= {key for one in alone for key in one.keys}
    before: set[int] = set()
    for count in (1, 2, 5):
        keys = set(made(forwards, replace(method, variants=count)).keys)
        assert before < keys
        before = keys


def test_each_word_is_altered_with_the_same_chance_and_one_at_least() -> None:
    counts = np.zeros(10)
    for key in range(3000):
        picked, draws = chosen(key, "dropout", 0, 10, 0.3)
        assert len(picked) == len(draws) >= 1
        counts[picked] += 1
    assert np.abs(counts / 3000 - 0.3).max() < 0.04  # 0.3 + 0.7¹⁰ ÷ 10, four standard errors
    assert [len(chosen(key, "dropout", 0, 10, 1e-9)[0]) for key in range(20)] == [1] * 20
    assert len(chosen(0, "dropout", 0, 10, 1.0)[0]) == 10


def test_methods_numbers_and_texts_draw_independently() -> None:
    draws = [
        chosen(*given, 20, 0.5)[0].tolist()
        for given in ((1, "dropout", 0), (2, "dropout", 0), (1, "masked", 0), (1, "dropout", 1))
    ]
    assert len({tuple(one) for one in draws}) == 4


# ---------------------------------------------------------------- what is dropped


def test_each_variant_is_new_and_none_stands_in_a_split() -> None:
    data = texts(
        "the good film",
        "good film",
        "The  film ends",
        validation={"text": ["film ends"], "label": ["x"]},
        test={"text": ["the ends"], "label": ["x"]},
    )
    after = augmented(data, PLAIN, [Dropout(50, 0.4)])
    variants = after.splits["train"].inputs["text"][3:]
    assert len(variants) == len(set(variants)) == after.variants["dropout"].count
    assert not {"film ends", "the ends", "The ends", "good film", "the good film"} & set(variants)
    assert {"the film", "the good", "good", "film", "ends"} <= {one.lower().strip() for one in variants}
    dropped = after.variants["dropout"].dropped
    assert set(dropped) == {"as train has them", "duplicates", "in validation or test"}
    assert sum(dropped.values()) + len(variants) == 150
    assert after.notes == (
        f"texts: {len(variants)} variants of 3 texts join train without labels: dropout {len(variants)}; dropped: "
        + ", ".join(f"{count} {reason}" for reason, count in dropped.items()),
    )


def test_a_text_keeps_a_word_and_one_without_words_has_no_variant() -> None:
    data = texts("film", "good film", "12 34", "...")
    after = augmented(data, PLAIN, [Dropout(3, 1.0)])
    assert (
        after.splits["train"].inputs["text"][4:] == ["good"] or after.splits["train"].inputs["text"][4:] == []
    )
    assert after.variants["dropout"].dropped["texts without a word to alter"] == 2


def test_texts_of_other_tasks_get_no_variants() -> None:
    data = replace(texts("the good film", "a bad story", "this very long plot"), taken=1)
    variants = made(data, Dropout(20, 0.3))
    assert len(variants)
    assert not any("plot" in text or "long" in text for text in variants.inputs["text"])
    assert expected_variants(AugmentConfig.model_validate({"dropout": {"variants": 20}}), data) == 40


def test_methods_do_not_repeat_each_other() -> None:
    after = augmented(texts(*SENTENCES), PLAIN, [Dropout(1, 0.2), Dropout(1, 0.2)])
    assert after.variants["dropout"].count == 0  # what the second one made
    assert len(after.splits["train"]) == len(made(texts(*SENTENCES), Dropout(1, 0.2))) + len(SENTENCES)


# ---------------------------------------------------------------- labels and kinds


def test_variants_are_without_labels_unless_they_keep_them() -> None:
    data = texts(*SENTENCES[:10])
    assert not TEXTS.reading.labelled(made(data, Dropout(1, 0.2)).labels).any()
    after = augmented(data, KEEPING, [Dropout(1, 0.2)])
    assert TEXTS.reading.labelled(after.splits["train"].labels).all()
    assert "join train with their texts' labels" in after.notes[0]
    for text, label in zip(
        after.splits["train"].inputs["text"][10:], after.splits["train"].labels.values[10:], strict=True
    ):
        origins = [i for i, one in enumerate(SENTENCES[:10]) if set(text.split()) <= set(one.split())]
        assert label in [i % 2 for i in origins]
    words = after.facts().words
    assert words > data.facts().words
    assert after.facts() == replace(data.facts(), examples=len(after.splits["train"]), words=words)
    assert after.without_variants().splits["train"].keys.tolist() == data.splits["train"].keys.tolist()
    assert after.fingerprint() != data.fingerprint()


KINDS: list[tuple[Task, Columns]] = [
    (TEXTS, {"text": ["the good film"], "label": ["x"]}),
    (
        text_classification("pairs", LABELS, 64, fields=PAIR),
        {"text": ["the film"], "text_pair": ["a story"], "label": ["x"]},
    ),
    (multi_label("marks", LABELS, 64), {"text": ["the good film"], "label": [["x", "y"]]}),
    (regression("numbers", 64), {"text": ["the good film"], "label": [2.5]}),
    (
        token_classification("words", ("O", "B-X"), 64),
        {"words": [["the", "film", "of", "Ann"]], "labels": [["O", "O", "O", "B-X"]]},
    ),
    (
        question_answering("answers", 64),
        {"question": ["is the film good"], "context": ["the film is good"], "answers": [["good"]]},
    ),
]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("task", "columns"), KINDS, ids=[task.name for task, _ in KINDS])
@pytest.mark.parametrize("method", [Dropout(4, 0.3), SWAP], ids=lambda method: method.name)
def test_every_kind_has_variants(task: Task, columns: Columns, method: Any, keep: bool) -> None:
    data = data_of(task, columns)
    variants = made(data, method, augment=KEEPING if keep else PLAIN)
    assert len(variants) >= 1
    assert (task.reading.labelled(variants.labels) == keep).all()
    assert set(variants.inputs) == set(data.splits["train"].inputs)
    fields = {role: variants.inputs[role] for role in task.reading.fields}
    assert (
        variants.keys.tolist() == examples_of(task, fields).keys.tolist()
    )  # the store knows them by their content
    assert variants.labels.counts.tolist() == (
        task.reading.counts(variants.inputs).tolist() if task.name == "words" else [1] * len(variants)
    )


# ---------------------------------------------------------------- a masked language model


def masked(folder: Path, model: Path, variants: int = 2, **more: Any) -> Masked:
    config = MaskedConfig(model=str(model), variants=variants, share=0.4, candidates=5)
    return Masked(config, folder, "tasks.texts.augment.masked", **more)


def test_a_model_is_asked_about_each_word_once(tmp_path: Path, tiny_fill_mask: TinyFillMask) -> None:
    seen: list[tuple[int, int]] = []
    data = texts(*SENTENCES)

    def run(variants: int = 2, some: TaskData = data) -> TaskData:
        method = masked(tmp_path, tiny_fill_mask(), variants, progress=lambda *counts: seen.append(counts))
        return augmented(some, PLAIN, [method])

    first = run()
    one = first.variants["masked"]
    assert one.count > 60
    assert one.asked > 100
    assert seen[-1] == (one.asked, one.asked)
    again = run()
    assert again.variants["masked"].asked == 0
    assert again.splits["train"].inputs["text"] == first.splits["train"].inputs["text"]
    assert again.variants["masked"].seconds > 0  # those of the run that asked
    more = run(3)
    assert 0 < more.variants["masked"].asked < one.asked
    assert set(first.splits["train"].keys) < set(more.splits["train"].keys)
    assert set(run(2, texts(*SENTENCES[::-1])).splits["train"].keys) == set(first.splits["train"].keys)


def test_words_are_replaced_one_for_one(tmp_path: Path, tiny_fill_mask: TinyFillMask) -> None:
    after = augmented(texts(*SENTENCES), PLAIN, [masked(tmp_path, tiny_fill_mask(), 1)])
    variants = after.splits["train"].inputs["text"][len(SENTENCES) :]
    by_length = {len(text.split()) for text in SENTENCES}
    assert {len(text.split()) for text in variants} <= by_length
    shown = after.variants["masked"].shown
    assert len(shown) == 5
    for text, variant in shown:
        assert text in SENTENCES
        assert variant in variants
        assert len(text.split()) == len(variant.split())
    reversed_order = augmented(texts(*SENTENCES[::-1]), PLAIN, [masked(tmp_path, tiny_fill_mask(), 1)])
    assert reversed_order.variants["masked"].shown == shown


def test_an_interruption_keeps_what_was_asked(tmp_path: Path, tiny_fill_mask: TinyFillMask) -> None:
    calls: list[None] = []

    def check() -> None:
        calls.append(None)
        if len(calls) == 10:
            raise InterruptedRunError("interrupted", "again")

    data = texts(*SENTENCES)
    with pytest.raises(InterruptedRunError):
        augmented(data, PLAIN, [masked(tmp_path, tiny_fill_mask(), check=check)])
    resumed = augmented(data, PLAIN, [masked(tmp_path, tiny_fill_mask())])
    whole = augmented(data, PLAIN, [masked(tmp_path / "other", tiny_fill_mask())])
    assert 0 < resumed.variants["masked"].asked < whole.variants["masked"].asked
    assert resumed.splits["train"].inputs["text"] == whole.splits["train"].inputs["text"]


# ---------------------------------------------------------------- a run


def of_run(run: dict[str, Any], model: Path) -> dict[str, Any]:
    run["tasks"]["mood"]["augment"] = {"masked": {"model": str(model)}, "dropout": {}}
    return run


def test_check_counts_variants_and_makes_none(tiny_run: TinyRun, tiny_fill_mask: TinyFillMask) -> None:
    config = parse_config(of_run(tiny_run(), tiny_fill_mask()))
    inputs = prepare(config)
    assert len(inputs.data["mood"].splits["train"]) == 48
    assert inputs.facts.tasks["mood"].examples == 48 * 4
    assert not config.variants_dir.exists()
    note = "note: mood: augment adds at most 144 variants of 48 texts to train, without labels (masked 2, dropout 1 a text)"
    assert note in summary(config, inputs)


def test_teachers_are_made_of_the_same_examples(tiny_run: TinyRun, tiny_fill_mask: TinyFillMask) -> None:
    run = tiny_run()
    without = parse_config(run)
    before = prepare(without)
    of_run(run, tiny_fill_mask())["tasks"]["mood"]["augment"]["keep_labels"] = True
    config = parse_config(run)
    plain = prepare(config)
    after = augment_inputs(config, plain, lambda task, done, total: None, lambda: None)
    assert after.teachers == before.teachers  # none is fine-tuned again
    assert after.resolved.fine_tunings == before.resolved.fine_tunings
    train = after.data["mood"].splits["train"]
    assert 100 < len(train) <= 192
    words = after.facts.tasks["mood"].words
    assert after.facts.tasks["mood"] == replace(before.facts.tasks["mood"], examples=len(train), words=words)
    assert after.data["tone"] is plain.data["tone"]
    for split in ("validation", "test"):
        assert (
            after.data["mood"].splits[split].keys.tolist() == before.data["mood"].splits[split].keys.tolist()
        )
    prints, old = after.fingerprints(config), before.fingerprints(without)
    assert {key for key in prints if prints[key] != old.get(key)} == {
        "tasks.mood.data",
        "tasks.mood.augment.masked.model",
    }


def test_variants_are_not_passed_on(tiny_run: TinyRun, csv_task: CsvTask) -> None:
    run = tiny_run()
    run["tasks"]["mood"]["augment"] = {"dropout": {"variants": 3}}
    run["tasks"]["tone"]["transfer"] = run["tasks"]["mood"]["transfer"] = "all"
    config = parse_config(run)
    data = with_variants(config, load_tasks(config), lambda task, done, total: None, lambda: None)
    assert len(data["tone"].splits["train"]) == 96
    mood = data["mood"]
    assert len(mood.splits["train"]) == 96 + mood.variants["dropout"].count
    own = [set(text.split()) for text in mood.splits["train"].inputs["text"][:48]]
    for text in mood.splits["train"].inputs["text"][96:]:
        assert any(set(text.split()) <= one for one in own)


def test_another_run_checks_the_model_and_wordnet(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run()
    run["tasks"]["mood"]["augment"] = {"masked": {"model": str(tmp_path / "none")}}
    with pytest.raises(Exception, match=r"tasks\.mood\.augment\.masked: no model"):
        prepare(parse_config(run))
    run["tasks"]["mood"]["augment"] = {"synonyms": {"path": str(tmp_path)}}
    with pytest.raises(Exception, match=r"tasks\.mood\.augment\.synonyms\.path: there is no .*index\.noun"):
        prepare(parse_config(run))
