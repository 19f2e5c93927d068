"""Token classification: one label out of C for each word of a sentence (entities, parts of speech).

An item is a word of the data set, for every tokenizer: a sentence's words are joined with single spaces, and a word's
logits are those of the first token that covers a character of it. A word without such a token (truncated, or without
a character that the tokenizer keeps) has the values `ABSENT`. It does not count in the loss; scores take it as
predicted `O`, or as the first label where there is no `O`. Values and rows: (M, C) logits, one row per word.

Whitespace is in no word: where a tokenizer makes the space before a word a separate token (SentencePiece before a
rare character), the word's logits are those of the next token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import ABSENT, UNLABELLED, Encoded, Examples, Ragged, flat_index, is_present
from pipeline.config.kinds import TOKEN_CLASSIFICATION as KIND
from pipeline.errors import DataError, TeacherError
from pipeline.losses import DISTRIBUTION_LOSSES, LossTerm
from pipeline.tasks.heads import ItemHead, attach_head, label_settings
from pipeline.tasks.label_columns import Column, label_ids, label_index, label_space, refuse_label
from pipeline.tasks.label_map import Groups, label_groups, marginalise, match_declared
from pipeline.tasks.plain_text import joined, sentences
from pipeline.tasks.scores import refuse_unlabelled, scores, softmax
from pipeline.tasks.spans import WORD, first_covered, last_covered
from pipeline.tasks.task import Task
from pipeline.tasks.tensors import TensorBatch, item_starts
from pipeline.tasks.text import flat_columns, pads_of
from pipeline.tasks.variants import Side, Variant, altered_words, side_of_words
from pipeline.tasks.words import text_words

if TYPE_CHECKING:
    from pipeline.config.schema import TaskConfig

OUTSIDE = "O"
IGNORED = -100
TAG = re.compile(r"([BIES])(?:-(.*))?", re.DOTALL)
"""A word's place in an entity, and the entity's type."""
PLAINER = {"S": "B", "E": "I"}
"""The place that replaces a place of BIOES in a label space without it."""


def token_classification(
    name: str, labels: tuple[str, ...], max_length: int, metric: str = KIND.metrics[0].name
) -> Task:
    """A token classification task over `labels`."""
    return Task(
        name,
        KIND,
        TokenReading(name, labels),
        TokenHead(name, max_length, labels),
        TokenScoring(metric, labels),
    )


def from_train(name: str, config: TaskConfig, train: Mapping[str, Column]) -> Task:
    """The task of a config; labels as declared, or the data set's names, or the distinct labels of train.

    The default metric is F1 of entities for entity tags, and accuracy for other labels.
    """
    words = _words(name, "train", train["words"])
    column = train["labels"]
    _refuse_ignored(name, column)
    present = _flat(_label_lists(name, "train", words, column))
    labels = label_space(name, config.data.labels, column.names, present)
    typed = any(TAG.fullmatch(label) and "-" in label for label in labels)
    metric = config.metric or ("f1" if typed else "accuracy")
    if metric == "f1" and not are_tags(labels):
        odd = [label for label in labels if not are_tags((label,))]
        raise DataError(
            f"tasks.{name}: f1 is of entities, and {', '.join(map(repr, odd[:5]))} {'are' if len(odd) > 1 else 'is'} no entity tag",
            "Set metric: accuracy, or write the labels as O and B-, I-, E-, S- with an entity type.",
        )
    return token_classification(name, labels, config.data.max_length, metric)


def _refuse_ignored(task: str, column: Column) -> None:
    """Raises `DataError` for -100, with which training scripts mark tokens that are no words of their own."""
    for row, labels in enumerate(column.values):
        if isinstance(labels, list | tuple) and IGNORED in labels:
            raise DataError(
                f"tasks.{task}: row {row} of train has the label {IGNORED}, which stands for a word without label",
                "Give words, not a tokenizer's tokens, each with its label; a row without labels has null.",
            )


def are_tags(labels: Iterable[str]) -> bool:
    """Whether all labels are entity tags (IOB1, IOB2 or BIOES), so that there is an F1."""
    return all(label == OUTSIDE or TAG.fullmatch(label) for label in labels)


@dataclass(frozen=True)
class TokenReading:
    """See `pipeline.tasks.task.Reading`."""

    fields: ClassVar[tuple[str, ...]] = KIND.inputs

    task: str
    labels: tuple[str, ...]

    @property
    def background(self) -> str | None:
        """`O`, where the labels are entity tags."""
        return OUTSIDE if are_tags(self.labels) and OUTSIDE in self.labels else None

    @property
    def entity_types(self) -> tuple[str, ...]:
        """``PER`` of ``B-PER``; "" of "O" and of a tag without a type."""
        if not are_tags(self.labels):
            return ()
        matches = (TAG.fullmatch(label) for label in self.labels)
        return tuple((match[2] or "") if match else "" for match in matches)

    def read(self, columns: Mapping[str, Column], split: str) -> tuple[dict[str, Sequence[Any]], Ragged]:
        """Words, and one label index each; `UNLABELLED` for all the words of a row whose labels are None."""
        words = _words(self.task, split, columns["words"])
        counts = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
        offsets = np.concatenate(([0], np.cumsum(counts)))
        ids = np.full(int(offsets[-1]), UNLABELLED)
        if "labels" not in columns:
            return {"words": words}, Ragged(ids, offsets)
        lists = _label_lists(self.task, split, words, columns["labels"])
        given = np.repeat([labels is not None for labels in lists], counts)
        values = _flat(lists)
        ids[given] = label_ids(label_index(self.labels, columns["labels"].names, values), values)
        for item in np.flatnonzero(given & (ids < 0))[:1]:
            row = int(np.searchsorted(offsets, item, side="right")) - 1
            wrong = columns["labels"].values[row][item - offsets[row]]
            raise refuse_label(self.task, row, split, wrong, self.labels)
        return {"words": words}, Ragged(ids, offsets)

    def labelled(self, labels: Ragged) -> NDArray[np.bool_]:
        """(n,) whether the sentence has labels; either all its words have one or none has."""
        return _labelled(labels)

    def counts(self, inputs: Mapping[str, Sequence[Any]]) -> NDArray[np.int64]:
        """(n,) words per sentence."""
        return _counts(inputs["words"])

    def plain(self, inputs: Mapping[str, Sequence[Any]]) -> tuple[Sequence[str], ...]:
        """The sentences, their words joined."""
        return ([joined(row) for row in inputs["words"]],)

    def from_plain(self, *columns: Sequence[str]) -> dict[str, Sequence[Any]]:
        """The words of each sentence of the texts."""
        (texts,) = columns
        return {"words": [WORD.findall(sentence) for text in texts for sentence in sentences(text)]}

    rewritable: ClassVar[tuple[bool, ...]] = (False,)
    """None: its words have labels."""

    def sides(self, inputs: Mapping[str, Sequence[Any]], labels: Ragged, row: int) -> tuple[Side, ...]:
        """The sentence, its words joined with spaces. Where labels are entity tags, only words that are labelled as
        background are free."""
        outside, background = None, self.background
        if are_tags(self.labels):
            own = labels.values[labels.offsets[row] : labels.offsets[row + 1]]
            outside = np.zeros(len(own), bool) if background is None else own == self.labels.index(background)
        return (side_of_words(inputs["words"][row], outside),)

    def altered(
        self,
        inputs: Mapping[str, Sequence[Any]],
        labels: Ragged,
        variants: Sequence[Variant],
        *,
        keep_labels: bool,
    ) -> tuple[dict[str, Sequence[Any]], Ragged]:
        """The altered sentences, word by word, with the labels of the words that are left or none."""
        rows = [altered_words(inputs["words"][one.row], one.changes[0]) for one in variants]
        read, none = self.read({"words": Column([words for words, _ in rows])}, "augment")
        own = [
            labels.values[labels.offsets[v.row] + left] for v, (_, left) in zip(variants, rows, strict=True)
        ]
        return read, Ragged.of(own) if keep_labels else none


@dataclass(frozen=True)
class TokenHead(ItemHead):
    """See `pipeline.tasks.task.Head`."""

    version: ClassVar[int] = 1  # increase it when predictions change: see `Head.version`
    row_weight: ClassVar[float] = 1.0
    losses: ClassVar[tuple[LossTerm, ...]] = DISTRIBUTION_LOSSES

    task: str
    max_length: int
    columns: tuple[str, ...]

    def attach(self, trunk: Any) -> Any:
        """A head with one output per label at each token."""
        return attach_head(trunk, KIND, label_settings(self.columns))

    def groups(
        self, id2label: Mapping[int, str], declared: Mapping[str, str | None] | None, where: str
    ) -> Groups | None:
        """The teacher's columns for each label, matched by name; `declared` may also have entity types as names."""
        if declared is not None:
            declared = _by_label(self.task, self.columns, list(id2label.values()), declared, where)
        return label_groups(id2label, self.columns, declared, self.task, where)

    def marginalise(self, values: Tensor, groups: Groups) -> Tensor:
        """(…, C) logits; the probabilities of a group's columns are summed."""
        return marginalise(values, groups)

    def encode(
        self,
        tokenizer: Any,
        inputs: Mapping[str, Sequence[Any]],
        max_length: int | None = None,
        words: bool = False,
    ) -> Encoded:
        """Token ids of n sentences, cut to `max_length`; how many words were lost is counted.

        The spot ``word`` holds the word that a token is the first of. A token that is the first of several words
        (some tokenizers join words) has the second in ``word+1``, and so on.
        """
        _check_tokenizer(tokenizer, self.task)
        rows, limit = inputs["words"], max_length or self.max_length
        texts, counts = [" ".join(words) for words in rows], _counts(rows)
        wanted = {"return_attention_mask": False, "return_offsets_mapping": True}
        encoded = tokenizer(texts, truncation=True, max_length=limit, **wanted)
        lengths = np.fromiter(map(len, encoded["input_ids"]), dtype=np.int64, count=len(rows))
        firsts = np.cumsum(counts) - counts
        starts, spans = _spans(_flat(rows))
        items, tokens = _first_tokens(encoded["offset_mapping"], starts[firsts], spans)
        full, lost = np.flatnonzero(lengths == limit), 0  # only these sentences can have lost words
        if len(full):
            whole = tokenizer([texts[i] for i in full], verbose=False, **wanted)
            seen_whole, _ = _first_tokens(whole["offset_mapping"], starts[firsts[full]], spans)
            lost = len(np.setdiff1d(seen_whole, items, assume_unique=True))
        owners = np.repeat(np.arange(len(rows)), counts)[items]
        return Encoded(
            columns=flat_columns(encoded, lengths),
            offsets=np.concatenate(([0], np.cumsum(lengths))),
            pads=pads_of(tokenizer),
            truncated=lost,
            spots=_spots(items - firsts[owners], tokens, int(lengths.sum())),
            counts=counts,
            units=np.bincount(owners, minlength=len(rows)),
            words=text_words(tokenizer, encoded.encodings, [texts], np.arange(len(rows))) if words else None,
        )

    def read_out(self, output: Any, batch: TensorBatch) -> Tensor:
        """(M, C) float32 logits of each word's first token, `ABSENT` for a word without token."""
        logits: Tensor = output.logits.float()
        values = logits.new_full((int(batch.counts.sum()), logits.shape[-1]), ABSENT)
        starts = item_starts(batch.counts)[batch.owners]
        for spot in batch.spots.values():
            sequences, tokens = (spot >= 0).nonzero(as_tuple=True)
            values[starts[sequences] + spot[sequences, tokens]] = logits[sequences, tokens]
        return values

    def truncatable(self, counts: NDArray[np.int64]) -> int:
        """The number of words: each may be lost."""
        return int(counts.sum())

    def rows(self, values: Tensor, counts: Tensor) -> Tensor:
        """`values` unchanged: they are the rows."""
        return values

    def flat(self, rows: Tensor, counts: Tensor) -> Tensor:
        """`rows` unchanged: they are the values."""
        return rows

    def row_labels(self, labels: Tensor, counts: Tensor) -> Tensor:
        """`labels` unchanged: one per word."""
        return labels

    def snippet(self) -> str:
        """Python code for a model card that loads the exported folder and uses it."""
        return (
            "from transformers import pipeline\n"
            f'tag = pipeline("{KIND.pipeline}", "path/to/this/folder", aggregation_strategy="first")\n'
            'tag("Words are separated by spaces .")  # in a script without spaces: tag(" ".join(text))'
        )


@dataclass(frozen=True)
class TokenScoring:
    """See `pipeline.tasks.task.Scoring`."""

    metric: str
    labels: tuple[str, ...]

    def scores(self, values: NDArray[np.floating], examples: Examples) -> dict[str, float]:
        """``f1``, ``precision`` and ``recall`` of whole entities as seqeval's default mode (and conlleval) has
        them, where the labels are entity tags; ``accuracy`` of words; ``nll`` and ``ece`` of the words that the
        model sees (see `pipeline.tasks.scores.scores`), left out where it sees none."""
        hits, predicted, gold, right, words = self.statistics(values, examples).sum(0)
        result = {"accuracy": float(right / words)}
        if are_tags(self.labels):
            result = {
                "f1": float(_ratio(2 * hits, predicted + gold)),
                "precision": float(_ratio(hits, predicted)),
                "recall": float(_ratio(hits, gold)),
                **result,
            }
        logits, labels = _seen(values, examples)
        if len(labels):
            calibration = scores(softmax(logits), labels)
            result |= {name: calibration[name] for name in ("nll", "ece")}
        return result

    def statistics(self, values: NDArray[np.floating], examples: Examples) -> NDArray[np.float64]:
        """(n, 5) entities that are right, predicted and gold; words that are right, and words."""
        refuse_unlabelled(_labelled(examples.labels))
        return self._statistics(self._predicted(values), examples.labels)

    def score_of(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """(…,) the task's metric of summed statistics: F1 (0 where there are no entities) or accuracy."""
        if self.metric == "f1":
            return _ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2])
        return np.asarray(sums[..., 3] / sums[..., 4])

    def constant_score(self, examples: Examples) -> float:
        """The score of predicting the most frequent label for every word; F1 is 0 where that label is `O`."""
        refuse_unlabelled(_labelled(examples.labels))
        gold = examples.labels.values
        majority = np.full_like(gold, np.bincount(gold).argmax())
        return float(self.score_of(self._statistics(majority, examples.labels).sum(0)))

    def agreement(self, a: NDArray[np.floating], b: NDArray[np.floating], examples: Examples) -> float:
        """Share of words for which both predict the same label."""
        return float((self._predicted(a) == self._predicted(b)).mean())

    def decisions(self, values: NDArray[np.floating], examples: Examples) -> NDArray[np.int64]:
        """(M,) label indices; a word without prediction has the default label."""
        return self._predicted(values)

    def answers(self, decisions: NDArray[Any], examples: Examples, items: NDArray[np.int64]) -> list[str]:
        """One word of each sentence, and its label."""
        labels = decisions[examples.labels.offsets[:-1] + items].tolist()
        words = zip(examples.inputs["words"], items.tolist(), labels, strict=True)
        return [f"{sentence[item]}: {self.labels[label]}" for sentence, item, label in words]

    def classified(
        self, values: NDArray[np.floating], examples: Examples
    ) -> tuple[NDArray[np.floating], NDArray[np.int64]] | None:
        """(N, C) logits and (N,) gold indices of the words that have a prediction."""
        return _seen(values, examples)

    def _predicted(self, values: NDArray[np.floating]) -> NDArray[np.int64]:
        """(M,) int64 predicted label indices; words without prediction get the default label."""
        if not np.isfinite(values).all():  # NaN would count as a word without prediction
            raise ValueError("values hold NaN or Inf")
        unseen = self.labels.index(OUTSIDE) if OUTSIDE in self.labels else 0
        return np.where(is_present(values).any(axis=1), values.argmax(axis=1), unseen)

    def _statistics(self, predicted: NDArray[np.int64], labels: Ragged) -> NDArray[np.float64]:
        right = np.add.reduceat(predicted == labels.values, labels.offsets[:-1], dtype=np.float64)
        entities = np.zeros((len(labels), 3))
        if are_tags(self.labels):
            pairs = zip(self._entities(predicted, labels), self._entities(labels.values, labels), strict=True)
            entities[:] = [(len(ours & gold), len(ours), len(gold)) for ours, gold in pairs]
        return np.column_stack((entities, right, labels.counts))

    def _entities(self, ids: NDArray[np.int64], shape: Ragged) -> Iterable[set[tuple[str, int, int]]]:
        """Each sentence's entities: type, first word, last word."""
        from seqeval.metrics.sequence_labeling import get_entities  # its import takes a second

        names = np.array(self.labels, dtype=object)[ids].tolist()
        for start, end in zip(shape.offsets[:-1].tolist(), shape.offsets[1:].tolist(), strict=True):
            yield set(get_entities(names[start:end]))


# ---------------------------------------------------------------- columns


def _words(task: str, split: str, column: Column) -> Sequence[Sequence[str]]:
    """The column's lists of words. Raises `DataError` for a row that is not a list of strings."""
    remedy = "Give each row a list of one or more words; remove or mend that row."
    for row, words in enumerate(column.values):
        where = f"tasks.{task}: row {row} of {split}"
        if not isinstance(words, list | tuple):
            raise DataError(f"{where}: words is {words!r}, not a list of words", remedy)
        if not words:
            raise DataError(f"{where} has no words", remedy)
        for place, word in enumerate(words):
            if not isinstance(word, str):
                raise DataError(f"{where}: word {place} is {word!r}, not text", remedy)
    return column.values


def _label_lists(
    task: str, split: str, words: Sequence[Sequence[str]], column: Column
) -> list[Sequence[Any] | None]:
    """Each row's labels, or None. Raises `DataError` for a row whose number of labels differs from its words'."""
    for row, (sentence, labels) in enumerate(zip(words, column.values, strict=True)):
        where = f"tasks.{task}: row {row} of {split}"
        if not isinstance(labels, list | tuple | None):
            raise DataError(
                f"{where}: labels is {labels!r}, not a list of labels",
                "Give each row a list with one label a word, or null for a row without labels.",
            )
        if labels is not None and len(labels) != len(sentence):
            raise DataError(
                f"{where} has {len(sentence)} words and {len(labels)} labels",
                "Give each word a label, or the row null for a row without labels.",
            )
    return list(column.values)


def _flat(rows: Iterable[Sequence[Any] | None]) -> list[Any]:
    """The rows' values end to end, without the rows that are None."""
    return list(chain.from_iterable(row for row in rows if row is not None))


def _counts(rows: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """(n,) words a sentence."""
    return np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))


def _labelled(labels: Ragged) -> NDArray[np.bool_]:
    """(n,) whether a sentence's first word has a label: all its words have one, or none has."""
    return np.asarray(labels.values[labels.offsets[:-1]] != UNLABELLED)


# ---------------------------------------------------------------- words and tokens


def _check_tokenizer(tokenizer: Any, task: str) -> None:
    if not tokenizer.is_fast:
        raise TeacherError(
            f"task {task}: {type(tokenizer).__name__} does not say which characters a token covers",
            "Use a model with a fast tokenizer (tokenizer.json).",
        )
    if tokenizer.truncation_side != "right":  # a cut on the left could remove the first token of a word
        raise TeacherError(
            f"task {task}: {type(tokenizer).__name__} truncates a sentence from its {tokenizer.truncation_side}",
            "Set truncation_side to right in the model's tokenizer_config.json.",
        )


def _spans(words: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the words in their concatenation with single spaces.

    Returns (W,) the start of each word, and (W, 2) its ``[start, end)`` without leading and trailing whitespace; for
    a word of whitespace only, end ≤ start.
    """
    lengths, kept, held = (
        np.fromiter(map(len, column), dtype=np.int64, count=len(words))
        for column in (words, map(str.lstrip, words), map(str.rstrip, words))
    )
    starts = np.cumsum(lengths + 1) - lengths - 1
    return starts, np.stack((starts + lengths - kept, starts + held), axis=1)


def _first_tokens(
    offsets: Sequence[Sequence[tuple[int, int]]], starts: NDArray[np.int64], spans: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The indices of the words that have tokens, ascending, and the flat index of each one's first token.

    offsets: each token's character positions, by example · starts: (n,) position of each example in the text to
    which `spans` (W, 2) refer. A token belongs to every word of which it covers a character.
    """
    lengths = np.fromiter(map(len, offsets), dtype=np.int64, count=len(offsets))
    ends = chain.from_iterable(chain.from_iterable(offsets))
    cover = np.fromiter(ends, dtype=np.int64, count=2 * int(lengths.sum())).reshape(-1, 2)
    cover = cover + np.repeat(starts, lengths)[:, None]
    visible = np.flatnonzero(spans[:, 1] > spans[:, 0])
    first = first_covered(cover[:, 0], cover[:, 1], spans[visible])
    last = last_covered(cover[:, 0], cover[:, 1], spans[visible])
    tokens = np.flatnonzero(first >= 0)
    covered = (last - first + 1)[tokens]
    words, at = np.unique(flat_index(first[tokens], covered), return_index=True)
    return visible[words], np.repeat(tokens, covered)[at]


def _spots(words: NDArray[np.int64], tokens: NDArray[np.int64], total: int) -> dict[str, NDArray[np.int32]]:
    """By column name, (total,) int32: the word of each token, -1 for none; as many columns as a token has words."""
    spots: dict[str, NDArray[np.int32]] = {}
    while not spots or len(tokens):
        _, first = np.unique(tokens, return_index=True)
        column = np.full(total, -1, dtype=np.int32)
        column[tokens[first]] = words[first]
        spots[f"word+{len(spots)}" if spots else "word"] = column
        words, tokens = np.delete(words, first), np.delete(tokens, first)
    return spots


# ---------------------------------------------------------------- labels


def _by_label(
    task: str, ours: Sequence[str], theirs: Sequence[str], declared: Mapping[str, str | None], where: str
) -> dict[str, str | None]:
    """`declared` with each entity type replaced by its labels; an entry for a label itself has priority.

    A type is mapped to a type, to one label for every prefix (`O`), or to None. Where the task has no S- and E-
    labels, B- and I- replace them.
    """
    types, our_types = _types(theirs), _types(ours)
    declared = match_declared(declared, [*theirs, *types], [*ours, *our_types], where)
    spelt: dict[str, str | None] = {}
    wanted: list[str] = []
    for name, label in declared.items():
        if name in theirs or name not in types:
            continue
        into = {} if label is None or label in ours else our_types.get(label, {})
        wanted += into.values()
        for place, their in types[name].items():
            same = into.get(place) or into.get(PLAINER.get(place, ""))
            spelt[their] = same or (f"{place}-{label}" if into else label)
    spelt |= {name: label for name, label in declared.items() if name in theirs or name not in types}
    known = {*spelt.values(), *(name for name in theirs if name not in spelt)}
    for label in wanted:
        if label not in known:
            raise TeacherError(
                f"{where}: task {task} has the label {label!r}, and none of {list(theirs)} stands for it",
                f"They mark entities in different ways: name labels, not entity types, in {where}.labels.",
            )
    return spelt


def _types(labels: Iterable[str]) -> dict[str, dict[str, str]]:
    """Entity type → place → label."""
    types: dict[str, dict[str, str]] = {}
    for label in labels:
        match = TAG.fullmatch(label)
        if match and match[2]:
            types.setdefault(match[2], {})[match[1]] = label
    return types


def _seen(values: NDArray[np.floating], examples: Examples) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    seen = is_present(values).any(axis=1)
    return values[seen], examples.labels.values[seen]


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """part ÷ whole, 0 where both are 0."""
    return np.asarray(part / np.where(whole > 0, whole, 1))
