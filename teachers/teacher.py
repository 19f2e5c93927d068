"""One frozen model with its own tokenizer: examples → soft targets. Plain PyTorch; actors only wrap it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pipeline.batch import Ragged, flat_index, token_budget_batches
from pipeline.errors import TeacherError
from pipeline.models import check_length, fingerprint, open_config, open_model, open_tokenizer
from pipeline.soft import Dense
from pipeline.tasks import Task
from pipeline.tasks.heads import model_class
from pipeline.tasks.label_map import Groups
from pipeline.tasks.tensors import TensorBatch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Dtype = Literal["fp32", "bf16", "fp16"]


class Teacher:
    """A model folder opened to label one task's examples.

    Columns are matched by name: column c of what `label` returns belongs to ``task.columns[c]`` whatever the
    model's own order; `labels` says what those names of the model's mean that the task has not (see
    `label_groups`). max_length: tokens a sequence, by default the task's. Raises `TeacherError` if the label
    spaces differ or the model is too short.
    """

    def __init__(
        self,
        folder: Path,
        task: Task,
        *,
        dtype: Dtype = "fp32",
        tokens_per_batch: int = 4096,
        device: str = "cpu",
        max_length: int | None = None,
        labels: Mapping[str, str | None] | None = None,
        where: str | None = None,
    ) -> None:
        self.groups = check_teacher(folder, task, where or str(folder), max_length, labels)
        self.task, self.tokens_per_batch, self.device = task, tokens_per_batch, torch.device(device)
        self.max_length = max_length or task.head.max_length
        self.tokenizer = open_tokenizer(folder)
        model: Any = open_model(model_class(task.kind), folder, dtype=DTYPES[dtype])
        self.model = model.to(self.device)

    @torch.inference_mode()
    def label(self, inputs: Mapping[str, Sequence[Any]]) -> tuple[Dense, int]:
        """Float32 soft targets of n examples in the order given, and how many of them were truncated.

        Batches are sorted by length and cut by padded tokens; the same examples in the same order give the
        same bytes.
        """
        encoded = self.task.head.encode(self.tokenizer, inputs, self.max_length)
        starts = np.concatenate(([0], np.cumsum(encoded.counts)))
        values = torch.empty(int(starts[-1]), len(self.task.head.columns))
        order = np.argsort(encoded.lengths, kind="stable")[
            ::-1
        ]  # longest first: memory peaks at once, not at the end
        for rows in token_budget_batches(encoded.lengths, order, self.tokens_per_batch):
            batch = TensorBatch.of(encoded.pad(rows), self.device)
            predictions = self.task.head.read_out(self.model(**batch.inputs), batch)
            if self.groups is not None:
                predictions = self.task.head.marginalise(predictions, self.groups)
            values[torch.from_numpy(flat_index(starts[rows], encoded.counts[rows]))] = predictions.cpu()
        return Dense(Ragged(values.numpy(), starts), self.task.head.columns), encoded.truncated


def check_teacher(
    folder: Path,
    task: Task,
    where: str,
    max_length: int | None = None,
    labels: Mapping[str, str | None] | None = None,
) -> Groups | None:
    """Which of the model's columns are the task's; reads its config only.

    Raises `TeacherError` if the model's head, label space or length does not fit the task.
    """
    _check_head(folder, task, where)
    id2label = {int(column): str(name) for column, name in (open_config(folder).id2label or {}).items()}
    groups = task.head.groups(id2label, labels, where)
    check_length(folder, max_length or task.head.max_length, where)
    return groups


def _check_head(folder: Path, task: Task, where: str) -> None:
    """A folder without the kind's head would get a random one. Where its config names no class, preflight finds it."""
    head = task.kind.auto_class.removeprefix("AutoModel")
    found = open_config(folder).architectures or []
    if found and not any(name.endswith(head) for name in found):
        raise TeacherError(
            f"{where}: {folder} is a {' or '.join(found)}, {task.kind.name} needs a …{head}",
            "Give a model that was trained for the task, or add `fine_tune` to make one of it.",
        )


def store_key(
    folder: Path,
    task: Task,
    dtype: Dtype,
    max_length: int | None = None,
    labels: Mapping[str, str | None] | None = None,
) -> str:
    """Name of this teacher's soft targets in the store: a hash of all that decides them but the example.

    Weights, tokenizer and config by content; kind, columns, max_length, dtype and label mapping by value, and
    with a mapping the class that sums or chooses among what it maps.
    """
    facts: list[Any] = [
        fingerprint(folder),
        task.kind.name,
        list(task.head.columns),
        max_length or task.head.max_length,
        dtype,
    ]
    if labels is not None:
        facts += [sorted(labels.items()), task.kind.problem]
    return blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
