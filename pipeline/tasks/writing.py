"""What kinds share whose models write texts: token ids of sources and targets, positions for losses, settings of generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import Encoded, Examples, TargetTokens
from pipeline.config.generation import GenerationConfig
from pipeline.errors import TeacherError
from pipeline.losses import TEXT_LOSSES, LossTerm
from pipeline.tasks.label_map import Groups
from pipeline.tasks.target_tokens import target_tokens
from pipeline.tasks.task import Reading, Scoring, Task
from pipeline.tasks.tensors import TensorBatch
from pipeline.tasks.text import encode_texts
from pipeline.tasks.text_scores import Likeness


@dataclass(frozen=True)
class WritingHead:
    """See `pipeline.tasks.task.Head`. prefix: read before each source · generation: how a model writes."""

    version: ClassVar[int] = 1  # increase it when predictions change: see `Head.version`
    losses: ClassVar[tuple[LossTerm, ...]] = TEXT_LOSSES
    row_weight: ClassVar[float] = 1.0
    columns: ClassVar[tuple[str, ...]] = ("text",)

    task: str
    max_length: int
    target_length: int
    prefix: str = ""
    generation: GenerationConfig = GenerationConfig()  # noqa: RUF009 - immutable

    def positions(self, max_length: int | None) -> int:
        """See `pipeline.tasks.task.Head`: those of a source; a target has its own."""
        return max_length or self.max_length

    @property
    def decoding(self) -> Mapping[str, Any]:
        """What decides what a model writes, beside the model and `max_length`."""
        return {"prefix": self.prefix, "target_length": self.target_length, **self.generation.settings}

    def of_model(self, prefix: str | None, generation: GenerationConfig) -> WritingHead:
        """The head of one model of the task. prefix: its own, None for the task's."""
        return replace(self, prefix=self.prefix if prefix is None else prefix, generation=generation)

    def attach(self, trunk: Any) -> Any:
        """The trunk itself: it has the vocabulary's head."""
        return trunk

    def encode(
        self,
        tokenizer: Any,
        inputs: Mapping[str, Sequence[Any]],
        max_length: int | None = None,
        words: bool = False,
    ) -> Encoded:
        """What the model reads of n sources, and token ids of their targets, cut to `target_length`, where `inputs` has them.

        Raises `TeacherError` where words are asked for: hidden states of these models are not read.
        """
        if words:
            raise self.no_hidden_states()
        encoded = self.encode_sources(tokenizer, inputs["source"], max_length or self.max_length)
        if "target" not in inputs:
            return encoded
        targets = self.targets(tokenizer, inputs["target"])
        return replace(encoded, targets=targets, units=targets.counts)

    def no_hidden_states(self) -> TeacherError:
        """The error of who asks for the words of a task that writes."""
        return TeacherError(
            f"tasks.{self.task}: the hidden states of a model that writes are not read",
            "Give its losses no weight on hidden.",
        )

    def prompts(self, tokenizer: Any, sources: Sequence[str]) -> list[str]:
        """What a model reads of n sources."""
        return [self.prefix + text for text in sources]

    def encode_sources(self, tokenizer: Any, sources: Sequence[str], max_length: int) -> Encoded:
        """What the model reads of n sources."""
        return self.read_prompts(tokenizer, self.prompts(tokenizer, sources), max_length)

    def read_prompts(self, tokenizer: Any, sources: Sequence[str], max_length: int) -> Encoded:
        """Token ids of n texts as the model reads them, cut to `max_length`."""
        return encode_texts(tokenizer, {"text": sources}, max_length)

    def targets(self, tokenizer: Any, texts: Sequence[str]) -> TargetTokens:
        """Token ids of n texts that a model learns to write, cut to `target_length`; none of an empty text."""
        return target_tokens(tokenizer, texts, self.target_length)

    def truncatable(self, counts: NDArray[np.int64]) -> int:
        """The number of sources. Targets are cut at a length of their own and counted by themselves."""
        return len(counts)

    def read_out(self, output: Any, batch: TensorBatch) -> Tensor:
        """(P, V) float32 logits of the P positions of the batch's targets, end to end."""
        assert batch.target is not None, "a batch of pairs"
        logits: Tensor = output.logits[batch.target_mask].float()
        return logits

    def groups(
        self, id2label: Mapping[int, str], declared: Mapping[str, str | None] | None, where: str
    ) -> Groups | None:
        """None: texts have no labels. Raises `TeacherError` where a label mapping is declared."""
        if declared is not None:
            raise TeacherError(f"{where}.labels: a task of texts has no labels", "Remove labels.")
        return None

    def marginalise(self, values: Tensor, groups: Groups) -> Tensor:
        """Never called: there are no groups."""
        raise NotImplementedError

    def rows(self, values: Tensor, counts: Tensor) -> Tensor:
        """`values` unchanged: each position is a row."""
        return values

    def flat(self, rows: Tensor, counts: Tensor) -> Tensor:
        """`rows` unchanged."""
        return rows

    def row_labels(self, labels: Tensor, counts: Tensor) -> Tensor:
        """`labels` unchanged: the token id at each position."""
        return labels

    def snippet(self) -> str:
        """Python code for a model card that loads the exported folder and writes a text."""
        return (
            "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer\n"
            'folder = "path/to/this/folder"\n'
            "tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder)\n"
            f'batch = tokenizer([{self.prefix + "Some text."!r}], return_tensors="pt")\n'
            "print(tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True))"
        )


class WritingReading(Reading, Protocol):
    """The reading of a kind that writes."""

    def sizes(self, sources: Sequence[str]) -> NDArray[np.float64]:
        """(n,) how long each source is, in a unit that the lengths of texts follow: characters, or seconds."""
        ...


class WritingScoring(Scoring, Protocol):
    """The scoring of a kind that writes."""

    @property
    def likeness(self) -> Likeness:
        """How alike two texts of the task are."""
        ...

    @property
    def signatures(self) -> Mapping[str, str]:
        """How scores are computed, by metric, for reports."""
        ...

    def text_losses(self, values: NDArray[Any], examples: Examples) -> NDArray[np.float64]:
        """(n,) a smooth loss of single texts, 1 of an empty one."""
        ...


def writing_reading(task: Task) -> WritingReading:
    """The reading of a task whose kind writes. Raises TypeError for another."""
    _check_writes(task)
    return cast("WritingReading", task.reading)


def writing_scoring(task: Task) -> WritingScoring:
    """The scoring of a task whose kind writes. Raises TypeError for another."""
    _check_writes(task)
    return cast("WritingScoring", task.scoring)


def _check_writes(task: Task) -> None:
    if not task.kind.writes:
        raise TypeError(f"{task.name} is of kind {task.kind.name}, which writes no texts")


def writing_head(task: Task) -> WritingHead:
    """The head of a task whose kind writes. Raises TypeError for another."""
    if not isinstance(task.head, WritingHead):
        raise TypeError(f"{task.name} is of kind {task.kind.name}, which writes no texts")
    return task.head
