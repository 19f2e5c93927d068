"""One frozen model with its own tokenizer: examples → soft targets. Plain PyTorch; actors only wrap it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batch import token_budget_batches
from pipeline.models import check_length, fingerprint, open_config, open_model, open_tokenizer
from pipeline.step import to_tensors
from pipeline.tasks import Task

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Dtype = Literal["fp32", "bf16", "fp16"]


class Teacher:
    """A model folder opened to label one task's examples.

    Labels are matched by name: column c of what `label` returns belongs to ``task.labels[c]`` whatever the
    model's own order. Raises `TeacherError` if the label spaces differ or the model is too short.
    """

    def __init__(
        self,
        folder: Path,
        task: Task,
        *,
        dtype: Dtype = "fp32",
        tokens_per_batch: int = 4096,
        device: str = "cpu",
    ) -> None:
        check_teacher(folder, task, str(folder))
        self.task, self.tokens_per_batch, self.device = task, tokens_per_batch, torch.device(device)
        self.tokenizer = open_tokenizer(folder)
        model: Any = open_model(task.model_class(), folder, dtype=DTYPES[dtype])
        self.model = model.to(self.device)
        self._columns = torch.from_numpy(task.columns_of(self.model.config.id2label or {}, str(folder)))

    @torch.inference_mode()
    def label(self, inputs: Mapping[str, Sequence[str]]) -> tuple[NDArray[np.float32], int]:
        """(n, C) float32 logits of n examples in the order given, and how many of them were truncated.

        Batches are sorted by length and cut by padded tokens; the same examples in the same order give the
        same bytes.
        """
        encoded = self.task.encode(self.tokenizer, inputs)
        logits = torch.empty(len(encoded), len(self.task.labels))
        order = np.argsort(encoded.lengths, kind="stable")[
            ::-1
        ]  # longest first: memory peaks at once, not at the end
        for rows in token_budget_batches(encoded.lengths, order, self.tokens_per_batch):
            out = self.model(**to_tensors(encoded.pad(rows), self.device)).logits
            logits[torch.from_numpy(rows.copy())] = out.float().cpu()[:, self._columns]
        return logits.numpy(), encoded.truncated


def check_teacher(folder: Path, task: Task, where: str) -> None:
    """Raises `TeacherError` if the model's label space or length does not fit the task; reads its config only."""
    task.columns_of(open_config(folder).id2label or {}, where)
    check_length(folder, task.max_length, where)


def store_key(folder: Path, task: Task, dtype: Dtype) -> str:
    """Name of this teacher's soft targets in the store: a hash of all that decides them but the example.

    Weights, tokenizer and config by content; kind, label space, max_length and dtype by value.
    """
    facts = [fingerprint(folder), task.kind, list(task.labels), task.max_length, dtype]
    return blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
