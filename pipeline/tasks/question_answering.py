"""Extractive question answering: the words of a context that answer a question, or none where it has no answer.

Models score the context's words, whatever their tokens, and one cell more for "no answer" (cell 0; word i is cell
i + 1): a start and an end logit each. Contexts longer than a sequence are read in overlapping windows. Within
a window a token's probability is summed onto the word that it covers (of several onto the first for start, the
last for end); over windows a word takes its largest logit and "no answer" its smallest, as Hugging Face's
``run_qa`` pools them. The softmax is over all cells of the context at once, so that windows compete (shared
normalisation: Clark & Gardner 2018, arXiv 1710.10723); tokens of the question are left out of it.

Values: (M, 2) logits of start and end a cell; rows: (2n, longest) an example's start, then its end, over its cells.

Not covered: answers that are not in the context, several answers at once; a span's ends are whole words.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import UNLABELLED, Encoded, Examples, Ragged, flat_index, token_budget_batches
from pipeline.config.kinds import QUESTION_ANSWERING as KIND
from pipeline.errors import DataError, TeacherError
from pipeline.losses import DISTRIBUTION_LOSSES, LossTerm
from pipeline.tasks.heads import ItemHead, attach_head, label_settings
from pipeline.tasks.label_columns import Column
from pipeline.tasks.label_map import Groups
from pipeline.tasks.scores import refuse_unlabelled
from pipeline.tasks.spans import WORD
from pipeline.tasks.task import Task
from pipeline.tasks.tensors import TensorBatch, item_mask, pad_items
from pipeline.tasks.text import altered_texts, texts_of
from pipeline.tasks.variants import Side, Variant, frozen, moved, side_of
from pipeline.tasks.windows import (
    SIDES,
    cell_counts,
    cell_logits,
    cells_of,
    check_room,
    chunks,
    encode_windows,
)
from pipeline.tasks.words import Words

if TYPE_CHECKING:
    from pipeline.config.schema import TaskConfig

LONGEST_ANSWER = 30
"""Words that a predicted answer may have, as many as Hugging Face's ``run_qa`` allows tokens by default."""
PADDED_CELLS = 1 << 18
"""Cells that are decoded at once."""
FORM = "Give {text: […], answer_start: […]} as SQuAD does, or a list of strings; an empty list: no answer."


class Answer(NamedTuple):
    """``context[start:end]`` is the text; "", 0, 0 for no answer."""

    text: str
    start: int
    end: int


def question_answering(
    name: str, max_length: int, metric: str = KIND.metrics[0].name, unanswerable: bool = False
) -> Task:
    """A question answering task. unanswerable: whether train has questions without an answer; if not, "no answer" is
    never predicted."""
    return Task(
        name,
        KIND,
        QuestionReading(name),
        SpanHead(name, max_length, unanswerable),
        AnswerScoring(metric, unanswerable),
    )


def from_train(name: str, config: TaskConfig, train: Mapping[str, Column]) -> Task:
    """The task of a config; train decides whether some questions have no answer."""
    if config.data.labels is not None:
        raise DataError(
            f"tasks.{name}.data.labels: question-answering has no label space", "Remove data.labels."
        )
    check_room(config.data.max_length, name)
    golds = _golds(name, "train", train)
    if not any(gold is not None and gold[0] for gold in golds):
        raise DataError(
            f"tasks.{name}: no question of train has an answer",
            "Give some of them the answer in their context.",
        )
    unanswerable = any(gold is not None and not gold[0] for gold in golds)
    return question_answering(
        name, config.data.max_length, config.metric or KIND.metrics[0].name, unanswerable
    )


@dataclass(frozen=True)
class QuestionReading:
    """See `pipeline.tasks.task.Reading`."""

    labels: ClassVar[tuple[str, ...]] = ()
    entity_types: ClassVar[tuple[str, ...]] = ()
    background: ClassVar[str | None] = None
    fields: ClassVar[tuple[str, ...]] = KIND.inputs

    task: str

    def read(self, columns: Mapping[str, Column], split: str) -> tuple[dict[str, Sequence[Any]], Ragged]:
        """Questions, contexts and every gold answer (none for unlabelled), and (2,) cells of the first one's ends.

        (0, 0): no answer; (-1, -1): unlabelled. Every gold answer must stand in its context.
        """
        inputs = texts_of(self.task, split, columns, self.fields)
        for role in self.fields:
            for row, text in enumerate(inputs[role]):
                if WORD.search(text) is None:
                    raise _refusal(self.task, split, row, f"{role} is empty", "Remove or mend that row.")
        contexts = inputs["context"]
        golds: Sequence[Gold | None] = [None] * len(contexts)
        if "answers" in columns:
            golds = _golds(self.task, split, columns)
        spans = np.zeros((len(contexts), 2), dtype=np.int64)
        cells = np.full((len(contexts), 2), UNLABELLED)
        for row, (gold, context) in enumerate(zip(golds, contexts, strict=True)):
            if gold is not None:
                places = _places(self.task, split, row, gold, context)
                spans[row] = places[0] if places else 0
                cells[row] = 0
        for rows in chunks(contexts):
            answered = rows[spans[rows, 1] > 0]
            words = Words.of([contexts[row] for row in answered])
            cells[answered] = cells_of(words, np.arange(len(answered)), spans[answered])
        texts = [[] if gold is None else list(gold[0]) for gold in golds]
        return {**inputs, "answers": texts}, Ragged.single(cells)

    def labelled(self, labels: Ragged) -> NDArray[np.bool_]:
        """(n,) whether the example is labelled: with an answer, or as unanswerable."""
        return _labelled(labels)

    def counts(self, inputs: Mapping[str, Sequence[Any]]) -> NDArray[np.int64]:
        """(n,) cells per example: the words of the context, and one for "no answer"."""
        return cell_counts(inputs["context"])

    def plain(self, inputs: Mapping[str, Sequence[Any]]) -> tuple[Sequence[str], ...]:
        """Questions and contexts."""
        return tuple(inputs[role] for role in self.fields)

    def from_plain(self, *columns: Sequence[str]) -> dict[str, Sequence[Any]]:
        """Pairs as a question and its context."""
        return dict(zip(self.fields, columns, strict=True))

    rewritable: ClassVar[tuple[bool, ...]] = (True, False)
    """The question; the context has the answer."""

    def sides(self, inputs: Mapping[str, Sequence[Any]], labels: Ragged, row: int) -> tuple[Side, ...]:
        """The question, and the context, of which no word of an answer is free, wherever the answer stands in it; no word
        at all where the example is unlabelled."""
        question, context = (inputs[role][row] for role in self.fields)
        kept = [place for gold in inputs["answers"][row] for place in _everywhere(gold, context)]
        side = side_of(context, kept)
        return side_of(question), side if labels.values[row, 0] != UNLABELLED else frozen(side)

    def altered(
        self,
        inputs: Mapping[str, Sequence[Any]],
        labels: Ragged,
        variants: Sequence[Variant],
        *,
        keep_labels: bool,
    ) -> tuple[dict[str, Sequence[Any]], Ragged]:
        """The altered questions and contexts, with their answers where these stand now, or none."""
        columns = {role: Column(column) for role, column in altered_texts(self.fields, variants).items()}
        if keep_labels:
            columns["answers"] = Column([_moved_golds(inputs, labels, one) for one in variants])
        return self.read(columns, "augment")


@dataclass(frozen=True)
class SpanHead(ItemHead):
    """See `pipeline.tasks.task.Head`."""

    version: ClassVar[int] = 1  # increase it when predictions change: see `Head.version`
    row_weight: ClassVar[float] = 0.5
    losses: ClassVar[tuple[LossTerm, ...]] = DISTRIBUTION_LOSSES
    columns: ClassVar[tuple[str, ...]] = SIDES

    task: str
    max_length: int
    unanswerable: bool = False

    def attach(self, trunk: Any) -> Any:
        """A head with two outputs per token; the config loses the labels of a trunk that was a classifier's."""
        return attach_head(trunk, KIND, {**label_settings(SIDES), "problem_type": None})

    def groups(
        self, id2label: Mapping[int, str], declared: Mapping[str, str | None] | None, where: str
    ) -> Groups | None:
        """None: start and end have no names in a model's config. Raises `TeacherError` for a declared mapping."""
        if declared is not None:
            raise TeacherError(
                f"{where}.labels: task {self.task} answers questions, it has no labels", "Remove labels."
            )
        return None

    def marginalise(self, values: Tensor, groups: Groups) -> Tensor:
        """`values` unchanged: there are no label groups."""
        return values

    def encode(
        self,
        tokenizer: Any,
        inputs: Mapping[str, Sequence[Any]],
        max_length: int | None = None,
        words: bool = False,
    ) -> Encoded:
        """Token ids of n questions with their contexts, in windows; questions that had to be cut are counted. See
        `encode_windows`."""
        limit = max_length or self.max_length
        return encode_windows(tokenizer, inputs["question"], inputs["context"], limit, self.task, words)

    def truncatable(self, counts: NDArray[np.int64]) -> int:
        """The number of examples: each question may be cut."""
        return len(counts)

    def read_out(self, output: Any, batch: TensorBatch) -> Tensor:
        """Start and end logits of every cell; `ABSENT` for a word that no token of the model stands for."""
        sides = [
            cell_logits(output[name].float(), batch.spots[side], batch)
            for name, side in zip(KIND.outputs, SIDES, strict=True)
        ]
        return torch.stack(sides, dim=-1)

    def rows(self, values: Tensor, counts: Tensor) -> Tensor:
        """(…, 2n, longest): the first example's start and end logits over its cells, the second's …, padded by `ABSENT`."""
        return pad_items(values, counts).transpose(-1, -2).flatten(start_dim=-3, end_dim=-2)

    def flat(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(M, 2) values: the rows without their padding."""
        padded = rows.view(len(counts), len(SIDES), rows.shape[-1]).transpose(-1, -2)
        return padded[item_mask(counts)]

    def row_labels(self, labels: Tensor, counts: Tensor) -> Tensor:
        """(2n,) int64 start and end cells, in the order of `rows`."""
        return labels.reshape(-1)

    def snippet(self) -> str:
        """Python code for a model card that loads the folder and answers; transformers has no pipeline for it."""
        none = ""
        if self.unanswerable:
            none = (
                '\nnone = inputs["input_ids"][0].tolist().index(tokenizer.cls_token_id)'
                "\nif output.start_logits[0, none] + output.end_logits[0, none] >= scores.max():"
                '\n    answer = "no answer"'
            )
        return SNIPPET.format(longest=LONGEST_ANSWER, none=none)


@dataclass(frozen=True)
class AnswerScoring:
    """See `pipeline.tasks.task.Scoring`."""

    metric: str
    unanswerable: bool = False

    def scores(self, values: NDArray[np.floating], examples: Examples) -> dict[str, float]:
        """``f1`` and ``exact_match``, as SQuAD v2.0 defines them; where there are questions without an answer also
        ``answerable_f1`` and ``no_answer_accuracy``, of the others and of those. Shares, not percent."""
        by_example = self._by_example(values, examples)
        result = dict(zip(KIND.selecting, by_example.mean(0).tolist(), strict=True))
        answerable = examples.labels.values[:, 0] > 0
        if answerable.all():
            return result
        if answerable.any():
            result["answerable_f1"] = float(by_example[answerable, 0].mean())
        result["no_answer_accuracy"] = float(by_example[~answerable, 1].mean())
        return result

    def statistics(self, values: NDArray[np.floating], examples: Examples) -> NDArray[np.float64]:
        """(n, 2): the metric of each example; 1, which counts examples."""
        metric = self._by_example(values, examples)[:, KIND.selecting.index(self.metric)]
        return np.stack((metric, np.ones_like(metric)), axis=1)

    def score_of(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """(…,) the mean of the metric over examples."""
        return np.asarray(sums[..., 0] / sums[..., 1])

    def constant_score(self, examples: Examples) -> float:
        """The score of predicting "no answer" for every question."""
        refuse_unlabelled(_labelled(examples.labels))
        by_example = [squad_scores("", golds) for golds in examples.inputs["answers"]]
        return float(np.mean(by_example, axis=0)[KIND.selecting.index(self.metric)])

    def agreement(self, a: NDArray[np.floating], b: NDArray[np.floating], examples: Examples) -> float:
        """Share of questions for which both predict the same span, or both "no answer"."""
        spans = [self.decisions(values, examples) for values in (a, b)]
        return float((spans[0] == spans[1]).all(axis=1).mean())

    def decisions(self, values: NDArray[np.floating], examples: Examples) -> NDArray[np.int64]:
        """(n, 2) first and last cell of each answer, (0, 0) for none."""
        counts = cell_counts(examples.inputs["context"])
        return best_spans(values, counts, no_answer=self.unanswerable)

    def answers(self, decisions: NDArray[Any], examples: Examples, items: NDArray[np.int64]) -> list[str]:
        """The words of each answer."""
        contexts = examples.inputs["context"]
        return [answer.text or "no answer" for answer in _answers(decisions, Words.of(contexts), contexts)]

    def classified(
        self, values: NDArray[np.floating], examples: Examples
    ) -> tuple[NDArray[np.floating], NDArray[np.int64]] | None:
        """None: an answer is not a label."""
        return None

    def _by_example(self, values: NDArray[np.floating], examples: Examples) -> NDArray[np.float64]:
        """(n, 2) F1 and exact match."""
        refuse_unlabelled(_labelled(examples.labels))
        answers = answers_of(values, examples.inputs, no_answer=self.unanswerable)
        golds = examples.inputs["answers"]
        return np.array(
            [squad_scores(answer.text, gold) for answer, gold in zip(answers, golds, strict=True)]
        ).reshape(-1, 2)


SNIPPET = """\
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForQuestionAnswering.from_pretrained(folder)
question, context = "Where was the paper found?", "The paper was lost in Rome. It was found in Oslo in 1907."
inputs = tokenizer(question, context, return_offsets_mapping=True, return_tensors="pt")
characters = inputs.pop("offset_mapping")[0].tolist()
with torch.no_grad():
    output = model(**inputs)
scores = output.start_logits[0, :, None] + output.end_logits[0]  # of every start with every end
in_context = torch.tensor([part == 1 for part in inputs.sequence_ids(0)])
spans = torch.ones_like(scores).triu().tril({longest} - 1).bool() & in_context[:, None] & in_context
scores = scores.masked_fill(~spans, -torch.inf)
first, last = divmod(int(scores.argmax()), len(scores))
answer = context[characters[first][0] : characters[last][1]].strip(){none}
print(answer)"""


# ---------------------------------------------------------------- reading

Gold = tuple[Sequence[str], Sequence[int] | None]
"""An example's gold answers, and where they start in the context, if the data set has that."""


def _refusal(task: str, split: str, row: int, what: str, remedy: str) -> DataError:
    return DataError(f"tasks.{task}: row {row} of {split}: {what}", remedy)


def _labelled(labels: Ragged) -> NDArray[np.bool_]:
    return np.asarray(labels.values[:, 0] != UNLABELLED)


def _golds(task: str, split: str, columns: Mapping[str, Column]) -> list[Gold | None]:
    """Each example's gold answers as the data set has them, None where the example is unlabelled."""
    values = columns["answers"].values
    starts = columns["answer_starts"].values if "answer_starts" in columns else [None] * len(values)
    return [
        None if value is None else _gold(task, split, row, value, start)
        for row, (value, start) in enumerate(zip(values, starts, strict=True))
    ]


def _gold(task: str, split: str, row: int, value: Any, starts: Any) -> Gold:
    """One cell of `answers`, and of `answer_starts`."""
    if isinstance(value, str) and value:  # one answer
        value, starts = [value], [starts] if isinstance(starts, int) else starts
    texts = value
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        value = {name: [one.get(name) for one in value] for name in ("text", "answer_start")}
    if isinstance(value, dict):
        if starts is not None:
            what = "answers say where they start, and so does answer_starts"
            raise _refusal(task, split, row, what, "Remove data.columns.answer_starts.")
        texts, starts = value.get("text"), value.get("answer_start")
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise _refusal(task, split, row, f"answers is {value!r:.200}, no list of strings", FORM)
    if starts is None:
        return texts, None
    if not isinstance(starts, list | tuple) or not all(type(start) is int for start in starts):
        raise _refusal(
            task, split, row, f"the answers' starts are {starts!r:.200}, no list of whole numbers", FORM
        )
    if len(starts) != len(texts):
        what = f"{len(texts)} answers and {len(starts)} starts"
        raise _refusal(task, split, row, what, "Give every answer one start.")
    return texts, starts


def _places(task: str, split: str, row: int, gold: Gold, context: str) -> list[tuple[int, int]]:
    """Character positions ``[start, end)`` of each gold answer in the context."""
    texts, starts = gold
    places = []
    for i, text in enumerate(texts):
        if WORD.search(text) is None:
            remedy = "Give an empty list for a question without an answer."
            raise _refusal(task, split, row, f"the answer {text!r} is empty", remedy)
        start = context.find(text) if starts is None else starts[i]
        if start < 0 or not context.startswith(text, start):
            place = "in the context" if starts is None else f"at character {start} of the context"
            remedy = "Mend the row: an answer is copied out of its context, its start counted in characters from 0."
            raise _refusal(task, split, row, f"the answer {text!r:.200} is not {place}", remedy)
        places.append((start, start + len(text)))
    return places


def _everywhere(gold: str, context: str) -> list[tuple[int, int]]:
    """Every place ``[start, end)`` of a gold answer in its context; with whitespace at its ends also the characters
    beside it, so that no word is left out together with that whitespace."""
    edge = int(gold != gold.strip())
    places, start = [], context.find(gold)
    while start >= 0:
        places.append((start - edge, start + len(gold) + edge))
        start = context.find(gold, start + 1)
    return places


def _moved_golds(
    inputs: Mapping[str, Sequence[Any]], labels: Ragged, variant: Variant
) -> dict[str, Any] | None:
    """The cell of `answers` of a variant; None where its example is unlabelled."""
    row, (_, side), (_, changes) = variant.row, variant.sides, variant.changes
    if labels.values[row, 0] == UNLABELLED:
        return None
    golds = inputs["answers"][row]
    starts = [side.text.find(gold) for gold in golds]
    if golds:  # the first one is the label: where it stands several times, its cells say which place is meant
        places = [match.start() for match in re.finditer(f"(?={re.escape(golds[0])})", side.text)]
        spans = np.array([(start, start + len(golds[0])) for start in places], dtype=np.int64)
        cells = 1 + Words.of([side.text]).covered(np.zeros(len(spans), dtype=np.int64), spans)
        starts[0] = places[int((cells == labels.values[row]).all(axis=1).argmax())]
    return {"text": golds, "answer_start": [moved(side, changes, start) for start in starts]}


# ---------------------------------------------------------------- answers


def answers_of(
    values: NDArray[np.floating], inputs: Mapping[str, Sequence[Any]], *, no_answer: bool
) -> list[Answer]:
    """The answers of a model with predictions `values` (M, 2) to the questions about ``inputs["context"]``, by
    `best_spans`."""
    contexts = inputs["context"]
    words = Words.of(contexts)
    cells = best_spans(values, 1 + words.counts, no_answer=no_answer)
    return _answers(cells, words, contexts)


def _answers(cells: NDArray[np.int64], words: Words, contexts: Sequence[str]) -> list[Answer]:
    """The answers from the first to the last of `cells` (n, 2), (0, 0) for none."""
    spans, answered = np.zeros_like(cells), np.flatnonzero(cells[:, 0])
    spans[answered] = words.characters(answered, cells[answered] - 1)
    return [
        Answer(context[start:end], start, end)
        for context, (start, end) in zip(contexts, spans.tolist(), strict=True)
    ]


def best_spans(
    values: NDArray[np.floating], counts: NDArray[np.int64], *, no_answer: bool
) -> NDArray[np.int64]:
    """(n, 2) first and last cell of each example's answer, (0, 0) for none.

    values: (M, 2) start and end logits of examples with `counts` (n,) cells. The answer is the span of at most
    `LONGEST_ANSWER` words with the largest start + end; of equals the shortest, and of those the first. Where
    `no_answer` may be given, it is given where cell 0 scores as much or more.
    """
    starts, spans = np.cumsum(counts) - counts, np.zeros((len(counts), 2), dtype=np.int64)
    for rows in token_budget_batches(counts, np.argsort(counts, kind="stable"), PADDED_CELLS):
        own, each = counts[rows], np.arange(len(rows))
        padded = np.full((len(rows), int(own.max()), 2), -np.inf)
        padded[np.arange(padded.shape[1]) < own[:, None]] = values[flat_index(starts[rows], own)]
        start, end = padded[:, 1:, 0], padded[:, 1:, 1]
        best, words = np.full(len(rows), -np.inf), start.shape[1]
        for more in range(min(LONGEST_ANSWER, words)):
            sums = start[:, : words - more] + end[:, more:]
            first = sums.argmax(axis=1)
            better = sums[each, first] > best
            best = np.where(better, sums[each, first], best)
            spans[rows[better]] = np.stack((first, first + more), axis=1)[better] + 1
        if no_answer:
            spans[rows[padded[:, 0].sum(axis=1) >= best]] = 0
    return spans


ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> list[str]:
    """The words that SQuAD compares: lower case, without punctuation and articles.

    Source: ``normalize_answer`` of SQuAD's evaluate-v2.0.py.
    """
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def squad_scores(answer: str, golds: Sequence[str]) -> tuple[float, float]:
    """F1 over words and exact match, each the largest over the gold answers; no golds: the answer should be "".

    Source: ``get_raw_scores`` of SQuAD's evaluate-v2.0.py, which gives v1.1's numbers where every question has
    an answer. (torchmetrics has the same function, but for whole data sets and none without gold answers.)
    """
    words = normalise(answer)
    scores = [_overlap(words, gold) for gold in map(normalise, golds) if gold] or [_overlap(words, [])]
    return max(f1 for f1, _ in scores), max(exact for _, exact in scores)


def _overlap(words: list[str], gold: list[str]) -> tuple[float, float]:
    exact = float(words == gold)
    if not words or not gold:
        return exact, exact
    common = (Counter(words) & Counter(gold)).total()
    return 2 * common / (len(words) + len(gold)), exact
