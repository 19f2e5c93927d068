"""Token classification: words read at the right tokens whatever the tokenizer, entities scored as seqeval does."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
from torch import Tensor
from transformers import AutoModelForTokenClassification

from pipeline import tasks
from pipeline.batch import ABSENT, UNLABELLED, Encoded, Examples, Ragged, is_present
from pipeline.config.data import DataConfig
from pipeline.config.kinds import TOKEN_CLASSIFICATION
from pipeline.config.schema import TaskConfig
from pipeline.data.splits import load_task
from pipeline.errors import DataError, TeacherError
from pipeline.losses import LossWeights, task_loss
from pipeline.models import open_model, open_tokenizer, quiet
from pipeline.predictor import Predictor
from pipeline.tasks import Task
from pipeline.tasks.heads import model_class
from pipeline.tasks.label_columns import Column
from pipeline.tasks.scores import bootstrap
from pipeline.tasks.tensors import TensorBatch
from pipeline.tasks.token_classification import from_train, token_classification
from pipeline.training.step import Aggregation, MicroBatch, WithLoss, accumulate, loss_inputs, predict
from students.export import save_task
from students.student import MultiTaskStudent, build_student
from tests.conftest import FILLER, GOOD, Architecture, TinyModel

IOB = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
BIOES = ("O", *(f"{place}-{kind}" for kind in ("PER", "LOC") for place in "BIES"))
POS = ("NOUN", "VERB", "ADJ")
MINILM = Path(__file__).parents[4] / ".cache" / "assets" / "minilm-l6"
CPU = torch.device("cpu")


def task_of(labels: Sequence[str] = IOB, max_length: int = 64, metric: str = "f1") -> Task:
    return token_classification("ner", tuple(labels), max_length, metric)


def made(
    words: Sequence[Any],
    labels: Column,
    *,
    metric: str | None = None,
    space: tuple[str, ...] | None = None,
) -> Task:
    """The task that `make` finds in these rows of train."""
    data = DataConfig(path="json", labels=space)
    config = TaskConfig(kind="token-classification", data=data, metric=metric)
    return from_train("ner", config, {"words": Column(words), "labels": labels})


def gold_of(ids: Sequence[Sequence[int]]) -> Examples:
    """Examples with these labels, and words of no interest."""
    words = [["w"] * len(row) for row in ids]
    return Examples(
        "ner", np.arange(len(ids), dtype=np.uint64), {"words": words}, Ragged.of([np.array(r) for r in ids])
    )


def saying(ids: Sequence[Sequence[int]], classes: int) -> NDArray[np.float64]:
    """Values whose largest is on these labels."""
    return 4.0 * np.eye(classes)[[label for row in ids for label in row]]


def test_it_is_a_task() -> None:
    task: Task = task_of()
    assert tasks.MAKERS[TOKEN_CLASSIFICATION] is from_train
    assert TaskConfig(kind="token-classification", data=DataConfig(path="json")).declared == task.kind
    assert (task.reading.fields, task.kind.labels, task.head.columns) == (("words",), ("labels",), IOB)
    assert (task.kind.selecting, task.head.row_weight, task.kind.continuous) == (("f1", "accuracy"), 1, False)
    assert pickle.loads(pickle.dumps(task)) == task  # noqa: S301
    assert model_class(task.kind) is AutoModelForTokenClassification
    assert task.head.truncatable(np.array([2, 1])) == 3
    assert task.reading.counts({"words": [["a", "b"], ["c"]]}).tolist() == [2, 1]


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("rows", "entities"),
    [
        ([["I-PER", "I-PER", "B-PER", "O", "I-LOC"]], [("PER", 0, 1), ("PER", 2, 2), ("LOC", 4, 4)]),  # IOB1
        ([["B-PER", "I-PER", "B-PER", "O", "B-LOC"]], [("PER", 0, 1), ("PER", 2, 2), ("LOC", 4, 4)]),
        ([["B-PER", "E-PER", "S-PER", "O", "S-LOC"]], [("PER", 0, 1), ("PER", 2, 2), ("LOC", 4, 4)]),
        ([["B-PER", "I-PER", "E-PER", "S-LOC", "O"]], [("PER", 0, 2), ("LOC", 3, 3)]),
    ],
)
def test_every_scheme_is_read_and_scored(rows: list[list[str]], entities: list[tuple[str, int, int]]) -> None:
    words = [[f"w{i}" for i in range(len(row))] for row in rows]
    task = made(words, Column(rows))
    assert task.reading.labels == tuple(sorted({label for row in rows for label in row}))
    assert task.scoring.metric == "f1"
    inputs, labels = task.reading.read({"words": Column(words), "labels": Column(rows)}, "train")
    assert inputs == {"words": words}
    assert [task.reading.labels[i] for i in labels.values] == rows[0]
    assert labels.values.dtype == np.int64
    examples = Examples("ner", np.arange(1, dtype=np.uint64), inputs, labels)
    right = saying([labels.values.tolist()], len(task.reading.labels))
    assert task.scoring.statistics(right, examples).tolist() == [[len(entities)] * 3 + [len(rows[0])] * 2]
    first_end = entities[0][2] + 1  # all but the first entity said
    said = [task.reading.labels.index("O")] * first_end + labels.values[first_end:].tolist()
    hits = len(entities) - 1
    assert task.scoring.scores(saying([said], len(task.reading.labels)), examples)["f1"] == pytest.approx(
        2 * hits / (len(entities) + hits)
    )


def test_class_numbers_are_positions_in_the_data_sets_names() -> None:
    words, names = [["a", "b"], ["c"]], ("O", "B-PER", "I-PER")
    task = made(words, Column([[1, 2], [0]], names))
    assert task.reading.labels == names
    _, labels = task.reading.read({"words": Column(words), "labels": Column([[1, 2], [0]], names)}, "test")
    assert (labels.values.tolist(), labels.offsets.tolist()) == ([1, 2, 0], [0, 2, 3])
    reordered = made(words, Column([[1, 2], [0]], names), space=("I-PER", "B-PER", "O"))
    _, labels = reordered.reading.read(
        {"words": Column(words), "labels": Column([[1, 2], [0]], names)}, "test"
    )
    assert labels.values.tolist() == [1, 0, 2]


def test_rows_without_labels_are_unlabelled() -> None:
    words = Column([["a", "b"], ["c"], ["d", "e"]])
    task = task_of()
    _, labels = task.reading.read(
        {"words": words, "labels": Column([["O", "B-PER"], None, ["O", "O"]])}, "train"
    )
    assert labels.values.tolist() == [0, 1, UNLABELLED, 0, 0]
    assert task.reading.labelled(labels).tolist() == [True, False, True]
    _, labels = task.reading.read({"words": words}, "unlabelled")
    assert labels.values.tolist() == [UNLABELLED] * 5
    assert not task.reading.labelled(labels).any()


@pytest.mark.parametrize(
    ("words", "labels", "cause"),
    [
        (["a", "b"], ["O"], "row 1 of train has 2 words and 1 labels"),
        (["a"], ["O", "O"], "row 1 of train has 1 words and 2 labels"),
        ([], [], "row 1 of train has no words"),
        ("ab", ["O", "O"], "row 1 of train: words is 'ab', not a list of words"),
        (None, ["O", "O"], "row 1 of train: words is None, not a list of words"),
        (["a", 5], ["O", "O"], "row 1 of train: word 1 is 5, not text"),
        (["a", None], ["O", "O"], "row 1 of train: word 1 is None, not text"),
        (["a"], "O", "row 1 of train: labels is 'O', not a list of labels"),
        (["a", "b"], ["O", "B-ORG"], f"row 1 of train: label 'B-ORG' is not one of {list(IOB)}"),
        (["a", "b"], ["O", None], f"row 1 of train: label None is not one of {list(IOB)}"),
        (["a", "b"], ["O", -100], f"row 1 of train: label -100 is not one of {list(IOB)}"),
    ],
)
def test_what_is_no_sentence_is_refused_by_row(words: Any, labels: Any, cause: str) -> None:
    columns = {"words": Column([["fine"], words]), "labels": Column([["O"], labels])}
    with pytest.raises(DataError) as caught:
        task_of().reading.read(columns, "train")
    assert caught.value.cause == f"tasks.ner: {cause}"
    assert caught.value.remedy
    if "is not one of" not in cause:  # a label outside the space is only known once there is a space
        with pytest.raises(DataError) as caught:
            made(columns["words"].values, columns["labels"])
        assert caught.value.cause == f"tasks.ner: {cause}"


def test_a_wrong_label_is_told_behind_unlabelled_rows() -> None:
    columns = {"words": Column([["a", "b"], ["c", "d"]]), "labels": Column([None, ["O", "X"]])}
    with pytest.raises(DataError, match="row 1 of test: label 'X'"):
        task_of().reading.read(columns, "test")


def test_the_metric_is_f1_only_where_there_are_entities() -> None:
    words = [["a", "b"]]
    assert made(words, Column([["NOUN", "VERB"]])).scoring.metric == "accuracy"
    assert made(words, Column([["O", "B-PER"]])).scoring.metric == "f1"
    assert made(words, Column([["O", "B-PER"]]), metric="accuracy").scoring.metric == "accuracy"
    with pytest.raises(DataError, match="f1 is of entities, and 'NOUN', 'VERB' are no entity tag"):
        made(words, Column([["NOUN", "VERB"]]), metric="f1")
    with pytest.raises(
        DataError, match="and 'L-PER' is no entity tag"
    ):  # BILOU, which seqeval reads only in part
        made(words, Column([["B-PER", "L-PER"]]))
    mixed = made(words, Column([["B-PER", "L-PER"]]), metric="accuracy")
    assert "f1" not in mixed.scoring.scores(saying([[0, 1]], 2), gold_of([[0, 1]]))


def test_a_data_set_is_loaded_with_its_class_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "tags": datasets.List(datasets.ClassLabel(names=list(IOB))),
        }
    )
    sentences = [[f"word{i}", "in", f"place{i}"] for i in range(40)]
    rows = {"tokens": sentences, "tags": [[1, 0, 3]] * 40}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    columns = {"words": "tokens", "labels": "tags"}
    data = DataConfig(path=str(tmp_path / "saved"), columns=columns)
    loaded = load_task("ner", TaskConfig(kind="token-classification", data=data))
    assert loaded.task.reading.labels == IOB
    assert loaded.task.scoring.metric == "f1"
    train = loaded.splits["train"]
    assert train.labels.values[:3].tolist() == [1, 0, 3]
    assert len(train.labels) == len(train)


def test_json_lines_are_loaded_with_the_labels_found(tmp_path: Path) -> None:
    for split, count in (("train", 30), ("validation", 10), ("test", 10)):
        rows = [{"words": [f"{split}{i}", "x"], "labels": ["B-PER", "O"]} for i in range(count)]
        if split == "train":
            rows.append({"words": ["nobody", "knows"], "labels": None})  # type: ignore[dict-item]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files: dict[str, str | tuple[str, ...]] = {
        split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation", "test")
    }
    data = DataConfig(path="json", data_files=files)
    loaded = load_task("ner", TaskConfig(kind="token-classification", data=data))
    assert loaded.task.reading.labels == ("B-PER", "O")
    assert loaded.task.scoring.metric == "f1"
    train = loaded.splits["train"]
    assert train.labels.values.tolist() == [0, 1] * 30 + [UNLABELLED] * 2
    assert len(loaded.labelled_train()) == 30


# ---------------------------------------------------------------- tokenizers

CORPUS = (
    "new york is a big city",
    "the new york times in new york",
    "今天 天气 很 好",
    "emoji 😀 here",
    "naïve café",
)


def _wordpiece(lowercase: bool) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = sorted({letter for text in CORPUS for letter in text} - {" "})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "new", "york", "##s", *letters]
    vocabulary = [*pieces, *(f"##{letter}" for letter in letters), *"-.,!'"]
    ids = {piece: i for i, piece in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    return tokenizer


def _byte_level(trim_offsets: bool) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=330, initial_alphabet=alphabet, special_tokens=["[PAD]", "[SEP]"], show_progress=False
        ),
    )
    if trim_offsets:  # as RoBERTa
        tokenizer.post_processor = processors.RobertaProcessing(("[SEP]", 1), ("[SEP]", 1), trim_offsets=True)
    else:  # as GPT-2
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _unigram() -> Any:
    """As SentencePiece models are converted."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace("\u200b", ""), normalizers.Strip(left=False)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "[PAD]", "[SEP]"]
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=80, unk_token="<unk>", special_tokens=special, show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP]", special_tokens=[("[SEP]", special.index("[SEP]"))]
    )
    return tokenizer


def _joining() -> Any:
    """Merges across spaces, also two: "new york i" and "san  juan" are tokens of it."""
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    special = ["<unk>", "[PAD]", "[SEP]"]
    tokenizer.train_from_iterator(
        (*CORPUS, *["san  juan"] * 9),
        trainers.BpeTrainer(vocab_size=120, special_tokens=special, show_progress=False),
    )
    return tokenizer


MAKERS: dict[str, Callable[[], Any]] = {
    "uncased": lambda: _wordpiece(True),
    "cased": lambda: _wordpiece(False),
    "roberta": lambda: _byte_level(True),
    "gpt2": lambda: _byte_level(False),
    "unigram": _unigram,
    "joining": _joining,
}
TOKENIZERS = (*MAKERS, *(("minilm",) if MINILM.is_dir() else ()))
SPLITTING = tuple(name for name in TOKENIZERS if name != "joining")


@cache
def tokenizer_of(name: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    quiet()
    if name == "minilm":
        return open_tokenizer(MINILM)
    return PreTrainedTokenizerFast(tokenizer_object=MAKERS[name](), pad_token="[PAD]")


PIECES = (
    *("a", "B", "new", "york", "i", "s", "é", "e\u0301", "\u0301", "ß", "İ", "ﬁ", "①", "½"),
    *("今", "天", "国", "ひ", "ｶﾞ", "한", "שלום", "\u200fעב", "العربية", "हिन्दी", "ไทย"),
    *("😀", "👩\u200d👩\u200d👧", "🇨🇭", "👍🏽", "☃", "\u200b", "\ufeff", "\u00ad", "\x00", "\ufffd"),
    *("\t", "\n", " ", "\u3000", "\xa0", "\u2028", "-", ".", "'s", "[SEP]", "<unk>", "##s", "▁", "Ġ"),
)
WORD = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=4).map("".join)
SENTENCES = st.lists(st.lists(WORD, min_size=1, max_size=6), min_size=1, max_size=4)


def first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Word → the first token that covers a character of it which is no space at its ends; the slow way."""
    found: dict[int, int] = {}
    start = 0
    for number, word in enumerate(words):
        mine = set(range(start + len(word) - len(word.lstrip()), start + len(word.rstrip())))
        for token, (begin, end) in enumerate(offsets):
            if mine & set(range(begin, end)):
                found[number] = token
                break
        start += len(word) + 1
    return found


def spotted(encoded: Encoded, example: int) -> dict[int, int]:
    """Word → token, from the spots."""
    start, end = encoded.offsets[example], encoded.offsets[example + 1]
    columns = [column[start:end].tolist() for column in encoded.spots.values()]
    pairs = [(word, token) for column in columns for token, word in enumerate(column) if word >= 0]
    assert len(dict(pairs)) == len(pairs), "a word is read twice"
    return dict(pairs)


@settings(deadline=None, max_examples=60)
@given(sentences=SENTENCES, max_length=st.integers(4, 24))
@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_word_is_read_at_its_first_token(
    name: str, sentences: list[list[str]], max_length: int
) -> None:
    tokenizer = tokenizer_of(name)
    encoded = task_of(max_length=max_length).head.encode(tokenizer, {"words": sentences})
    assert encoded.counts.tolist() == list(map(len, sentences))
    lost = 0
    for example, words in enumerate(sentences):
        text = " ".join(words)
        cut = tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=True)
        whole = tokenizer(text, verbose=False, return_offsets_mapping=True)["offset_mapping"]
        start, end = encoded.offsets[example], encoded.offsets[example + 1]
        assert encoded.columns["input_ids"][start:end].tolist() == cut["input_ids"]
        expected = first_tokens(words, cut["offset_mapping"])
        assert spotted(encoded, example) == expected
        assert encoded.units[example] == len(expected)
        lost += len(first_tokens(words, whole)) - len(expected)
        begin = 0
        for word, piece in enumerate(words):
            if word in expected:
                covered = set(range(*cut["offset_mapping"][expected[word]]))
                assert covered & set(range(begin, begin + len(piece)))
                first = begin + len(piece) - len(piece.lstrip())
                assert cut.char_to_token(first) in (None, expected[word])  # None: a character it drops
            begin += len(piece) + 1
    assert encoded.truncated == lost


def test_words_that_share_a_token_are_all_read() -> None:
    words = [["new", "york", "is"], ["san", "", "juan"], ["x"]]
    encoded = task_of().head.encode(tokenizer_of("joining"), {"words": words})
    assert list(encoded.spots) == ["word", "word+1", "word+2"]
    assert spotted(encoded, 0) == {0: 0, 1: 0, 2: 0}
    assert spotted(encoded, 1) == {0: 0, 2: 0}  # the empty word is nowhere
    assert encoded.units.tolist() == [3, 2, 1]
    batch = TensorBatch.of(encoded.pad(np.arange(3)), CPU)
    logits = torch.randn(*batch.inputs["input_ids"].shape, 5)
    values = task_of().head.read_out(SimpleNamespace(logits=logits), batch)
    assert torch.equal(values[:3], logits[0, 0].expand(3, 5))
    assert (values[4] == ABSENT).all()


def test_truncation_is_counted_by_word(tiny_model: TinyModel) -> None:
    tokenizer = open_tokenizer(tiny_model("bert"))
    sentences = [
        ["good"] * 6,  # [CLS], [SEP] and 6: all of it
        ["good"] * 9,  # 3 too many
        ["good"] * 5 + ["xyz"] + ["good"],  # of xyz one letter is seen, and so the word; the last is lost
        ["good"] * 6 + ["", "\u200b"],  # what has no token was never there
        ["good"] * 7 + ["", "bad"],
    ]
    encoded = task_of(max_length=8).head.encode(tokenizer, {"words": sentences})
    assert encoded.truncated == 3 + 1 + 2
    assert encoded.units.tolist() == [6, 6, 6, 6, 6]
    assert encoded.counts.tolist() == [6, 9, 7, 8, 9]
    assert task_of(max_length=8).head.encode(tokenizer, {"words": sentences}, 32).truncated == 0


def test_a_tokenizer_that_cannot_tell_words_is_refused() -> None:
    with pytest.raises(TeacherError, match="which characters"):
        task_of().head.encode(SimpleNamespace(is_fast=False), {"words": [["a"]]})
    with pytest.raises(TeacherError, match="from its left"):
        task_of().head.encode(SimpleNamespace(is_fast=True, truncation_side="left"), {"words": [["a"]]})


# ---------------------------------------------------------------- reading out


@settings(deadline=None, max_examples=30)
@given(sentences=SENTENCES, seed=st.integers(0, 99))
@pytest.mark.parametrize("name", TOKENIZERS)
def test_values_are_the_logits_of_those_tokens(name: str, sentences: list[list[str]], seed: int) -> None:
    task = task_of(max_length=12)
    encoded = task.head.encode(tokenizer_of(name), {"words": sentences})
    rows = np.random.default_rng(seed).permutation(len(sentences))
    if not encoded.lengths[rows].any():
        return  # no token at all, and nothing to pad
    batch = TensorBatch.of(encoded.pad(rows), CPU)
    shape = (*batch.inputs["input_ids"].shape, len(IOB))
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    values = task.head.read_out(SimpleNamespace(logits=logits), batch)
    expected = torch.full((int(encoded.counts.sum()), len(IOB)), ABSENT)
    start, read = 0, torch.zeros(shape)
    for row, example in enumerate(rows):
        for word, token in spotted(encoded, int(example)).items():
            expected[start + word] = logits[row, token].detach()
            read[row, token] += 1
        start += len(sentences[example])
    assert torch.equal(values, expected)
    seen = is_present(values).all(-1)
    assert torch.equal(seen, is_present(values).any(-1))
    assert int(seen.sum()) == encoded.units.sum()
    torch.testing.assert_close(values[seen].softmax(-1).sum(-1), torch.ones(int(seen.sum())))
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    assert torch.equal(gradient, read)


def tiny_student(folder: Path, task: Task, seed: int = 1, noise: float = 0.3) -> MultiTaskStudent:
    """One that does not say the same of every word."""
    student = build_student(folder, (task,), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    return student


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "mpnet", "modernbert"])
def test_with_the_models_own_words_it_is_the_direct_path(
    tiny_model: TinyModel, architecture: Architecture
) -> None:
    task, folder = task_of(), tiny_model(architecture)
    student, tokenizer = tiny_student(folder, task), open_tokenizer(folder)
    for words in (["The", "xylophone", "was", "brilliantly", "GOOD"], ["so", "dull"]):
        ours = predict(student, task, task.head.encode(tokenizer, {"words": [words]}), 64)
        direct = tokenizer([words], is_split_into_words=True, return_tensors="pt")
        with torch.inference_mode():
            logits = student("ner", dict(direct)).logits[0]
        ids = direct.word_ids(0)
        assert np.array_equal(ours, logits[[ids.index(word) for word in range(len(words))]].numpy())


def test_values_do_not_depend_on_the_batch(tiny_model: TinyModel) -> None:
    task, folder = task_of(), tiny_model("bert")
    student, tokenizer = tiny_student(folder, task), open_tokenizer(folder)
    rng = np.random.default_rng(0)
    sentences = [rng.choice(FILLER, int(rng.integers(1, 12))).tolist() for _ in range(20)]
    encoded = task.head.encode(tokenizer, {"words": sentences})
    alone = predict(student, task, encoded, 1)
    np.testing.assert_allclose(predict(student, task, encoded, 120), alone, atol=1e-5, rtol=1e-5)
    backwards = predict(student, task, task.head.encode(tokenizer, {"words": sentences[::-1]}), 1)
    pieces = np.split(backwards, np.cumsum(list(map(len, sentences[::-1])))[:-1])
    assert np.array_equal(np.concatenate(pieces[::-1]), alone)


# ---------------------------------------------------------------- soft targets


def word_logits(tokenizer: Any, sentences: Sequence[Sequence[str]], table: Tensor, length: int) -> Any:
    """What a model would say whose every token repeats its word's row of `table` (words end to end, C)."""
    texts = [" ".join(words) for words in sentences]
    encoded = tokenizer(texts, truncation=True, max_length=length, return_offsets_mapping=True)
    widest = max(map(len, encoded["input_ids"]))
    logits = torch.full((len(texts), widest, table.shape[1]), 7.0)
    first = 0
    for row, (words, offsets) in enumerate(zip(sentences, encoded["offset_mapping"], strict=True)):
        for token, (begin, end) in enumerate(offsets):
            start = 0
            for number, word in enumerate(words):
                left = start + len(word) - len(word.lstrip())
                if begin < min(end, start + len(word.rstrip())) and end > left:
                    logits[row, token] = table[first + number]
                start += len(word) + 1
        first += len(words)
    return SimpleNamespace(logits=logits)


@settings(deadline=None, max_examples=40)
@given(SENTENCES, st.sampled_from(SPLITTING), st.sampled_from(SPLITTING), st.sampled_from([0.5, 1.0, 4.0]))
def test_a_student_that_is_its_teacher_has_no_soft_loss(
    sentences: list[list[str]], theirs: str, ours: str, temperature: float
) -> None:
    task = task_of()
    total = sum(map(len, sentences))
    table = torch.randn(total, len(IOB), generator=torch.Generator().manual_seed(total))

    def said(name: str, length: int) -> tuple[Tensor, TensorBatch, NDArray[np.int64]]:
        encoded = task.head.encode(tokenizer_of(name), {"words": sentences}, length)
        if not encoded.lengths.any():
            encoded = task.head.encode(tokenizer_of("uncased"), {"words": sentences}, length)
            name = "uncased"
        batch = TensorBatch.of(encoded.pad(np.arange(len(sentences))), CPU)
        output = word_logits(tokenizer_of(name), sentences, table, length)
        return task.head.read_out(output, batch), batch, encoded.units

    teacher, _, _ = said(theirs, 10)
    student, batch, units = said(ours, 14)
    labels = torch.zeros(total, dtype=torch.int64)

    def soft(target: Tensor) -> tuple[float, Tensor, Tensor | None]:
        weights = LossWeights({"hard": 0.0, "soft": 1.0}, temperature)
        micro = MicroBatch(batch, labels, target[None])
        inputs = loss_inputs(task, student, micro, weights, Aggregation("mean", torch.ones(1)))
        return float(task_loss(inputs, weights, 1.0)[1]["soft"]), inputs.valid, inputs.taught

    stored = torch.from_numpy(teacher.numpy().astype(np.float16)).float()
    assert torch.equal(is_present(stored), is_present(teacher))
    loss, valid, taught = soft(teacher)
    assert abs(loss) < 1e-5 * max(1, total) * temperature**2
    assert valid.sum() == units.sum()
    both = is_present(teacher).any(-1) & is_present(student).any(-1)
    counted = valid if taught is None else valid * taught
    assert torch.equal(counted > 0, both)
    if both.sum() > 1:  # were it shifted by a word, it would show
        shifted = teacher.clone()
        shifted[both] = teacher[both].roll(1, 0)
        assert soft(shifted)[0] > 1e-3


def test_a_permuted_teacher_says_the_same(tiny_model: TinyModel, tmp_path: Path) -> None:
    order = [3, 0, 4, 1, 2]
    theirs = task_of([IOB[i] for i in order])
    folder = tiny_model("bert")
    student, tokenizer = tiny_student(folder, task_of()), open_tokenizer(folder)
    permuted = build_student(folder, (theirs,))
    with torch.no_grad():
        permuted.load_state_dict(student.state_dict())
        for name, parameter in student.model("ner").classifier.named_parameters():
            permuted.model("ner").classifier.get_parameter(name).copy_(parameter[order])
    inputs = {"words": [["the", "xylophone", "", "good"], ["a"] * 80]}
    said = []
    for name, model in (("plain", student), ("permuted", permuted)):
        save_task(model, "ner", tokenizer, tmp_path / name)
        values, truncated = Predictor(tmp_path / name, task_of(max_length=32)).predict(inputs)
        assert truncated == 50
        assert values.counts.tolist() == [4, 80]
        said.append(values.values)
    np.testing.assert_allclose(said[0], said[1], atol=1e-5)
    assert (said[0][[2, 34, 83]] == ABSENT).all()
    assert is_present(said[0][[0, 1, 3, 4, 33]]).all()
    assert np.ptp(said[0][:2], axis=0).max() > 0.1, "a model that says the same of every word proves nothing"


# ---------------------------------------------------------------- label spaces


def groups(
    theirs: Sequence[str], declared: dict[str, str | None] | None, ours: Sequence[str] = IOB
) -> tuple[tuple[int, ...], ...] | None:
    return task_of(ours).head.groups(dict(enumerate(theirs)), declared, "teachers.big")


def test_entity_types_are_spelt_out() -> None:
    theirs = ("O", "B-PERSON", "I-PERSON", "B-MISC", "I-MISC", "I-LOC", "B-LOC")
    assert groups(theirs, {"PERSON": "PER", "MISC": "O"}) == ((0, 3, 4), (1,), (2,), (6,), (5,))
    assert groups(theirs, {"PERSON": "PER", "MISC": None}) == ((0,), (1,), (2,), (6,), (5,))
    assert groups(theirs, {"PERSON": "PER", "MISC": "LOC"}) == ((0,), (1,), (2,), (3, 6), (4, 5))
    mixed: dict[str, str | None] = {"PERSON": "PER", "MISC": "O", "B-MISC": "B-LOC", "I-LOC": None}
    assert groups(theirs, mixed) == ((0, 4), (1,), (2,), (3, 6), ())  # of a label: before its type


def test_entity_types_are_matched_whatever_their_case() -> None:
    theirs = ("O", "B-Person", "I-Person", "B-LOC", "I-LOC")
    assert groups(theirs, {"PERSON": "per"}) == ((0,), (1,), (2,), (3,), (4,))


def test_a_teacher_may_know_a_part() -> None:
    assert groups(("B-PERSON", "I-PERSON", "O"), {"PERSON": "PER"}) == ((2,), (0,), (1,), (), ())
    assert groups(("O", "PERSON", "PLACE"), {"PERSON": "PER", "PLACE": "LOC"}, ("O", "PER", "LOC")) == (
        (0,),
        (1,),
        (2,),
    )
    assert groups(("O", "B-PERSON", "I-PERSON"), {"PERSON": "PER"}, ("O", "PER")) == ((0,), (1, 2))


def test_bioes_is_told_in_iob_and_not_the_reverse() -> None:
    assert groups(BIOES, {"PER": "PER", "LOC": "LOC"}) == ((0,), (1, 4), (2, 3), (5, 8), (6, 7))
    with pytest.raises(TeacherError) as caught:
        groups(IOB, {"PER": "PER", "LOC": "LOC"}, BIOES)
    assert "'E-PER'" in caught.value.cause
    assert "teachers.big.labels" in caught.value.remedy
    with pytest.raises(TeacherError, match="'B-PER'"):  # IO only
        groups(("O", "I-PERSON", "I-LOC", "B-LOC"), {"PERSON": "PER"})


@pytest.mark.parametrize(
    ("declared", "named"),
    [
        ({"PERSON": "PER"}, "'B-MISC' is not declared"),
        ({"PERSON": "PER", "MISC": "ORG"}, "'ORG'"),
        ({"PERSON": "PER", "MISC": "O", "EVENT": "O"}, "'EVENT'"),
        ({"PERSON": "B-ORG", "MISC": "O"}, "'B-ORG'"),
        (None, "are not those of task ner"),
    ],
)
def test_what_is_not_said_is_refused(declared: dict[str, str | None] | None, named: str) -> None:
    theirs = ("O", "B-PERSON", "I-PERSON", "B-MISC", "I-MISC", "I-LOC", "B-LOC")
    with pytest.raises(TeacherError) as caught:
        groups(theirs, declared)
    assert named in caught.value.cause
    assert caught.value.cause.startswith("teachers.big: ")


def test_absent_words_stay_absent_when_labels_are_summed() -> None:
    theirs = ("O", "B-PERSON", "I-PERSON", "B-MISC", "I-MISC")
    found = groups(theirs, {"PERSON": "PER", "MISC": "O"})
    assert found is not None
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    values[1] = ABSENT
    ours = task_of().head.marginalise(values, found)
    assert not is_present(ours[1]).any()
    assert not is_present(torch.from_numpy(ours.numpy().astype(np.float16))[1]).any()
    expected = values[[0, 2]].softmax(-1)
    summed = torch.stack((expected[:, [0, 3, 4]].sum(-1), expected[:, 1], expected[:, 2]), -1)
    torch.testing.assert_close(ours[[0, 2]].softmax(-1)[:, :3], summed)
    assert (ours[[0, 2]].softmax(-1)[:, 3:] == 0).all()


# ---------------------------------------------------------------- evaluation


def sequences(classes: int) -> st.SearchStrategy[list[list[tuple[int, int]]]]:
    """Sentences of (gold, said) pairs."""
    label = st.integers(0, classes - 1)
    return st.lists(st.lists(st.tuples(label, label), min_size=1, max_size=8), min_size=1, max_size=5)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
@pytest.mark.parametrize("labels", [IOB, BIOES, ("I-PER", "O", "B-PER", "I-LOC"), ("B", "I", "O")])
def test_scores_are_seqevals(labels: tuple[str, ...], data: st.DataObject) -> None:
    pairs = data.draw(sequences(len(labels)))
    gold, said = ([[pair[side] for pair in row] for row in pairs] for side in (0, 1))
    truth, guess = ([[labels[i] for i in row] for row in ids] for ids in (gold, said))
    examples, values = gold_of(gold), saying(said, len(labels))
    scores = task_of(labels).scoring.scores(values, examples)
    assert scores["f1"] == pytest.approx(f1_score(truth, guess, zero_division=0))
    assert scores["precision"] == pytest.approx(precision_score(truth, guess, zero_division=0))
    assert scores["recall"] == pytest.approx(recall_score(truth, guess, zero_division=0))
    assert scores["accuracy"] == pytest.approx(accuracy_score(truth, guess))
    for metric in ("f1", "accuracy"):
        task = task_of(labels, metric=metric)
        statistics = task.scoring.statistics(values, examples)
        assert statistics.shape == (len(gold), 5)
        assert float(task.scoring.score_of(statistics.sum(0))) == scores[metric]
        (drawn,) = bootstrap([statistics], task.scoring.score_of, resamples=8)
        assert drawn.shape == (8,)
        assert np.isfinite(drawn).all()


def test_words_that_are_not_seen_stand_as_outside() -> None:
    gold = gold_of([[1, 2, 0], [0, 3]])
    values = saying([[1, 2, 0], [1, 3]], 5)
    values[[1, 3]] = ABSENT  # I-PER, and the wrong B-PER
    task = task_of()
    scores = task.scoring.scores(values, gold)
    assert scores["f1"] == pytest.approx(0.5)  # PER 0-0 for PER 0-1, and LOC
    assert scores["accuracy"] == pytest.approx(4 / 5)
    alone = np.exp(4) / (np.exp(4) + 4)
    assert scores["nll"] == pytest.approx(-np.log(alone))
    assert scores["ece"] == pytest.approx(1 - alone)
    logits, labels = task.scoring.classified(values, gold) or ((), ())
    assert np.array_equal(logits, values[[0, 2, 4]])
    assert list(labels) == [1, 0, 3]
    assert task.scoring.agreement(values, saying([[1, 0, 0], [0, 3]], 5), gold) == 1
    assert task.scoring.agreement(values, saying([[1, 2, 0], [0, 3]], 5), gold) == 0.8
    nothing = task.scoring.scores(np.full((5, 5), ABSENT), gold)
    assert nothing == {"f1": 0, "precision": 0, "recall": 0, "accuracy": 0.4}
    pos = task_of(POS, metric="accuracy")  # without an O: the first
    assert pos.scoring.scores(np.full((2, 3), ABSENT), gold_of([[0, 1]])) == {"accuracy": 0.5}


def test_parts_of_speech_have_an_accuracy_only() -> None:
    task, gold = task_of(POS, metric="accuracy"), gold_of([[0, 1, 2], [0]])
    values = saying([[0, 1, 0], [0]], 3)
    assert task.scoring.scores(values, gold).keys() == {"accuracy", "nll", "ece"}
    assert task.scoring.scores(values, gold)["accuracy"] == 0.75
    assert float(task.scoring.score_of(task.scoring.statistics(values, gold).sum(0))) == 0.75
    assert task.scoring.constant_score(gold) == 0.5


def test_a_constant_answer_finds_entities_only_where_most_words_are_one() -> None:
    assert task_of().scoring.constant_score(gold_of([[0, 0, 1], [0]])) == 0
    assert task_of(metric="accuracy").scoring.constant_score(gold_of([[0, 0, 1], [0]])) == 0.75
    assert task_of().scoring.constant_score(gold_of([[1, 1, 0], [1]])) == pytest.approx(2 * 3 / (4 + 3))


def test_missing_labels_and_nan_are_not_scored() -> None:
    unlabelled = gold_of([[0, 1], [UNLABELLED, UNLABELLED]])
    for score in (task_of().scoring.scores, task_of().scoring.statistics):
        with pytest.raises(DataError, match="1 of 2 examples"):
            score(saying([[0, 1], [0, 0]], 5), unlabelled)
    broken = saying([[0, 1]], 5)
    broken[0] = np.nan  # which is not above the bound for being present, and yet no word unseen
    for score in (task_of().scoring.scores, task_of().scoring.statistics):
        with pytest.raises(ValueError, match="NaN"):
            score(broken, gold_of([[0, 1]]))


# ---------------------------------------------------------------- training and use


def test_training_lowers_the_loss_with_labels_and_a_teacher_of_other_tokens(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    task = task_of()
    rng = np.random.default_rng(0)
    names = dict(enumerate(GOOD[:4], 1))  # a word tells its label
    ids = [rng.integers(5, size=int(rng.integers(2, 9))) for _ in range(24)]
    words = [[names.get(int(i), str(rng.choice(FILLER))) for i in row] for row in ids]
    inputs = {"words": [*words, ["", "good"]]}
    labels = np.concatenate([*ids, [UNLABELLED] * 2])
    teacher_folder, folder = tmp_path / "teacher", tiny_model("bert", layers=1)
    mpnet = tiny_model("mpnet")
    save_task(tiny_student(mpnet, task), "ner", open_tokenizer(mpnet), teacher_folder)
    soft, _ = Predictor(teacher_folder, task).predict(inputs)
    encoded = task.head.encode(open_tokenizer(folder), inputs)
    student = build_student(folder, (task,))
    rows = np.arange(len(inputs["words"]))
    batch = TensorBatch.of(encoded.pad(rows), CPU)
    micro = MicroBatch(batch, torch.from_numpy(labels), torch.from_numpy(soft.values)[None])
    optimizer: torch.optim.Optimizer = torch.optim.SGD(student.parameters(), lr=0.1)

    def step() -> dict[str, float]:
        optimizer.zero_grad()
        terms = accumulate(
            WithLoss(student),
            task,
            [micro],
            LossWeights({"hard": 0.5, "soft": 0.5}, 2.0),
            Aggregation("mean", torch.ones(1)),
            float(encoded.units.sum()),
            torch.autocast("cpu", enabled=False),
        )
        optimizer.step()
        return {name: float(value) for name, value in terms.items()}

    first, second = step(), step()
    assert second["total"] < first["total"]
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    for _ in range(40):
        last = step()
    assert last["hard"] < 0.8 * first["hard"]
    assert last["soft"] < 0.8 * first["soft"]


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "mpnet", "modernbert"])
def test_plain_transformers_finds_the_students_entities(
    tiny_model: TinyModel, tmp_path: Path, architecture: Architecture
) -> None:
    """For words of letters, of which the pipeline makes no more than one word each.

    It splits a WordPiece model's words at punctuation and between Chinese characters, and takes what is spelt
    with more or fewer characters than it covers for the middle of a word.
    """
    from seqeval.metrics.sequence_labeling import get_entities
    from transformers import pipeline

    task, folder = task_of(), tiny_model(architecture)
    student, tokenizer = tiny_student(folder, task, noise=0.5), open_tokenizer(folder)
    rng = np.random.default_rng(1)
    words = [*GOOD, *FILLER, "xylophone", "Abcdef", "goodly", "Filming", "4x4"]
    sentences = [rng.choice(words, int(rng.integers(1, 9))).tolist() for _ in range(30)]
    encoded = task.head.encode(tokenizer, {"words": sentences})
    with torch.no_grad():  # so that every label is the largest somewhere
        student.model("ner").classifier.bias -= torch.from_numpy(predict(student, task, encoded, 100)).mean(0)
    save_task(student, "ner", tokenizer, tmp_path / "ner")
    tag: Any = pipeline("token-classification", str(tmp_path / "ner"), aggregation_strategy="first")
    said = torch.from_numpy(predict(student, task, encoded, 100)).argmax(-1)
    kinds = set()
    for sentence, ids in zip(sentences, torch.split(said, list(map(len, sentences))), strict=True):
        ends = np.cumsum([len(word) + 1 for word in sentence]) - 1
        starts = ends - list(map(len, sentence))
        entities = get_entities([IOB[i] for i in ids])
        expected = [(kind, int(starts[first]), int(ends[last])) for kind, first, last in entities]
        found = [(group["entity_group"], group["start"], group["end"]) for group in tag(" ".join(sentence))]
        assert found == expected
        kinds |= {(kind, last > first) for kind, first, last in entities}
    assert len(kinds) == 4, "the student must say single words and longer entities of both types"


def test_the_snippet_runs(tiny_model: TinyModel, tmp_path: Path) -> None:
    task, folder = task_of(), tiny_model("bert")
    save_task(tiny_student(folder, task), "ner", open_tokenizer(folder), tmp_path / "ner")
    names: dict[str, Any] = {}
    lines = task.head.snippet().replace("path/to/this/folder", str(tmp_path / "ner"))
    exec(lines, names)
    assert names["tag"]("the good film")
    model: Any = open_model(AutoModelForTokenClassification, tmp_path / "ner")
    assert model.config.id2label == dict(enumerate(IOB))
