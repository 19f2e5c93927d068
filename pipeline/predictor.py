"""One frozen model with its own tokenizer: examples → raw predictions. A teacher is one, and so is a saved student.

Plain PyTorch: actors and commands only wrap it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.arithmetic import DTYPES, Dtype
from pipeline.batch import (
    Ragged,
    first_windows,
    flat_index,
    offsets_of,
    pad_targets,
    rows_of,
    token_budget_batches,
)
from pipeline.config.generation import TokenTargetsConfig
from pipeline.config.kinds import Kind
from pipeline.errors import TeacherError
from pipeline.events import sparse_rows
from pipeline.memory import run_batches
from pipeline.models import check_length, open_config, open_model, open_tokenizer, vocabulary
from pipeline.soft import Dense, Layer, Sparse, Texts, join_soft
from pipeline.tasks import Task
from pipeline.tasks.ctc import of_model
from pipeline.tasks.forced import most_tokens, output_along
from pipeline.tasks.generation import write_texts
from pipeline.tasks.heads import model_class
from pipeline.tasks.label_map import Groups
from pipeline.tasks.tensors import TensorBatch
from pipeline.tasks.transcribing import frame_logits
from pipeline.tasks.words import word_means
from pipeline.tasks.writing import writing_head

Labels = tuple[Dense | Texts | Sparse, Dense | None, int]
"""Predictions of n examples, or what the model writes, (W, H) float16 hidden vectors of their words where these are read, and how many of the
examples were truncated."""


class Predictor:
    """A Hugging Face model folder, opened to predict one task's examples.

    Columns are matched by name: column c of the predictions belongs to ``task.head.columns[c]``, in whatever order
    the model has its labels. labels: the model's label name → the task's, for names that differ (see
    `pipeline.tasks.label_map`) · max_length: tokens a sequence, by default the task's · where: the model's key in the
    config, for errors · layer: the layer whose hidden vectors `label` returns; None for no hidden vectors.

    Raises `TeacherError` if the label spaces differ or the model has too few positions.
    """

    def __init__(
        self,
        folder: Path,
        task: Task,
        *,
        dtype: Dtype = "fp32",
        tokens_per_forward: int = 4096,
        device: str = "cpu",
        max_length: int | None = None,
        labels: Mapping[str, str | None] | None = None,
        where: str | None = None,
        layer: Layer | None = None,
    ) -> None:
        self.layer = layer
        self.groups = check_model(folder, task, where or str(folder), max_length=max_length, labels=labels)
        self.tokens_per_forward, self.device = tokens_per_forward, torch.device(device)
        self.max_length = max_length or task.head.max_length
        self.tokenizer = open_tokenizer(folder)
        self.task = of_model(task, self.tokenizer)
        model: Any = open_model(
            model_class(task.kind, open_config(folder).architectures), folder, dtype=DTYPES[dtype]
        )
        self.model = model.to(self.device)

    def predict(self, inputs: Mapping[str, Sequence[Any]]) -> tuple[Dense | Texts, int]:
        """(M, C) float32 predictions of n examples, or texts, in their order, and how many of the examples were truncated.

        Batches are sorted by length and cut by padded tokens; the same examples in the same order give the
        same bytes.
        """
        predictions, _, truncated = (
            self._write(inputs) if self.task.kind.writes else self._forward(inputs, None)
        )
        return predictions, truncated

    def label(self, inputs: Mapping[str, Sequence[Any]]) -> Labels:
        """As `predict`, with the hidden vectors of the examples' words out of the same forward passes."""
        return self._write(inputs) if self.task.kind.writes else self._forward(inputs, self.layer)

    @torch.inference_mode()
    def _forward(
        self, inputs: Mapping[str, Sequence[Any]], layer: Layer | None
    ) -> tuple[Dense, Dense | None, int]:
        encoded = self.task.head.encode(self.tokenizer, inputs, self.max_length, words=layer is not None)
        starts = np.concatenate(([0], np.cumsum(encoded.counts)))
        values = torch.empty(int(starts[-1]), len(self.task.head.columns))
        words = np.zeros(1, np.int64) if encoded.words is None else offsets_of(encoded.words.counts)
        vectors = torch.empty(int(words[-1]), 0 if layer is None else layer.size, dtype=torch.float16)
        # the longest examples first: memory peaks in the first batch, not in the last
        order = np.argsort(encoded.lengths, kind="stable")[::-1]

        def work(rows: NDArray[np.int64]) -> None:
            batch = TensorBatch.of(encoded.pad(rows, words=layer is not None), self.device)
            output = self.model(**batch.inputs, output_hidden_states=layer is not None)
            predictions = self.task.head.read_out(output, batch)
            if self.groups is not None:
                predictions = self.task.head.marginalise(predictions, self.groups)
            values[torch.from_numpy(flat_index(starts[rows], encoded.counts[rows]))] = predictions.cpu()
            if layer is not None and batch.words is not None:
                means = word_means(output.hidden_states[layer.index].float(), batch.words)
                items, _ = rows_of(words, rows)
                vectors[torch.from_numpy(items)] = means.cpu().half()

        run_batches(token_budget_batches(encoded.lengths, order, self.tokens_per_forward), work)
        hidden = None if layer is None else Dense(Ragged(vectors.numpy(), words), layer)
        return Dense(Ragged(values.numpy(), starts), self.task.head.columns), hidden, encoded.truncated

    @torch.inference_mode()
    def force(self, inputs: Mapping[str, Sequence[Any]], form: TokenTargetsConfig) -> Labels:
        """The model's distributions at the positions of n given texts, one row a token, and how many of the examples were
        truncated; of a model that labels frames one row a frame of the first window. inputs: ``source`` and ``text``."""
        if not self.model.can_generate():
            return self._frames(inputs["source"], form)
        head = writing_head(self.task)
        pairs = {"source": inputs["source"], "target": inputs["text"]}
        encoded = first_windows(head.encode(self.tokenizer, pairs, self.max_length))
        space = vocabulary(self.tokenizer)
        assert encoded.targets is not None, "encoded with targets"
        texts, lengths = encoded.targets, np.maximum(encoded.lengths, encoded.targets.counts)
        tokens = most_tokens(self.tokens_per_forward, len(space))
        parts, order = list[tuple[NDArray[np.int64], Sparse]](), np.argsort(lengths, kind="stable")[::-1]

        def work(rows: NDArray[np.int64]) -> None:
            target = torch.from_numpy(pad_targets(texts.take(rows))).to(self.device)
            batch = replace(TensorBatch.of(encoded.pad(rows), self.device), target=target)
            output = output_along(self.model, batch.inputs, target)
            logits = head.read_out(output, batch)[:, : len(space)]
            ids, logs, rest = sparse_rows(logits, form, target[batch.target_mask], seed=int(target.sum()))
            offsets = offsets_of(texts.counts[rows])
            parts.append((rows, Sparse(Ragged(ids, offsets), logs, rest, space)))

        run_batches(token_budget_batches(lengths, order, tokens), work)
        return _in_order(parts), None, encoded.truncated

    def _frames(self, recordings: Sequence[str], form: TokenTargetsConfig) -> Labels:
        encoded = first_windows(self.task.head.encode(self.tokenizer, {"source": recordings}))
        space, parts = vocabulary(self.tokenizer), list[tuple[NDArray[np.int64], Sparse]]()

        def work(rows: NDArray[np.int64]) -> None:
            batch = TensorBatch.of(encoded.pad(rows), self.device)
            frames = frame_logits(self.model, batch.inputs)
            logits = torch.cat(frames).float()[:, : len(space)]
            ids, logs, rest = sparse_rows(logits, form, logits.argmax(dim=-1), seed=len(logits))
            offsets = offsets_of(np.array([len(own) for own in frames]))
            parts.append((rows, Sparse(Ragged(ids, offsets), logs, rest, space)))

        order = np.argsort(encoded.lengths, kind="stable")[::-1]
        run_batches(token_budget_batches(encoded.lengths, order, self.tokens_per_forward), work)
        return _in_order(parts), None, encoded.truncated

    def _write(self, inputs: Mapping[str, Sequence[Any]]) -> tuple[Texts, None, int]:
        sources = {name: inputs[name] for name in self.task.reading.fields}
        encoded = self.task.head.encode(self.tokenizer, sources, self.max_length)
        head, tokens = writing_head(self.task), self.tokens_per_forward
        texts = write_texts(
            self.model,
            self.tokenizer,
            encoded,
            head.generation,
            target_length=head.target_length,
            tokens=tokens,
            device=self.device,
        )
        return texts, None, encoded.truncated


def _in_order(parts: Sequence[tuple[NDArray[np.int64], Sparse]]) -> Sparse:
    """The distributions of n examples, in their order, out of those of batches and the examples of each."""
    rows = np.concatenate([own for own, _ in parts])
    joined = join_soft([part for _, part in parts])
    assert isinstance(joined, Sparse), "as its parts are"
    return joined.take(np.argsort(rows))


def check_model(
    folder: Path,
    task: Task,
    where: str,
    *,
    max_length: int | None = None,
    labels: Mapping[str, str | None] | None = None,
) -> Groups | None:
    """For each column of the task, the model's columns that stand for it; None where the columns have no label names.

    Reads the model's config only. Arguments as in `Predictor`. Raises `TeacherError` if the model's head, label space
    or length does not fit the task.
    """
    check_head(folder, task.kind, where)
    id2label = {int(column): str(name) for column, name in (open_config(folder).id2label or {}).items()}
    groups = task.head.groups(id2label, labels, where)
    check_length(folder, task.head.positions(max_length), where)
    return groups


def check_head(folder: Path, kind: Kind, where: str) -> None:
    """Raises `TeacherError` for a model of another class: it would get a random head. A config that names no class
    passes; preflight then refuses a random head by its score."""
    heads = kind.heads or (kind.auto_class.removeprefix("AutoModel"),)
    architectures = open_config(folder).architectures or []
    if architectures and not any(name.endswith(heads) for name in architectures):
        raise TeacherError(
            f"{where}: {folder} is a {' or '.join(architectures)}, {kind.name} needs a …{' or …'.join(heads)}",
            "Give a model that was trained for the task, or add `fine_tune` to make one of it.",
        )
