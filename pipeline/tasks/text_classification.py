"""Text classification: one text, one label out of C.

Not covered: several labels a text, sentence pairs, regression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import Encoded
from pipeline.errors import TeacherError
from pipeline.losses import hard_cross_entropy, soft_kl


@dataclass(frozen=True)
class TextClassification:
    """One text classification task; see `pipeline.tasks.Task`."""

    kind: ClassVar[str] = "text-classification"
    fields: ClassVar[tuple[str, ...]] = ("text",)

    name: str
    labels: tuple[str, ...]
    max_length: int
    metric: str

    @staticmethod
    def model_class() -> Any:
        """`AutoModelForSequenceClassification`."""
        from transformers import (
            AutoModelForSequenceClassification,  # the core's other users need no transformers
        )

        return AutoModelForSequenceClassification

    def head_settings(self) -> dict[str, Any]:
        """Label names in the task's order, softmax over them."""
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: i for i, label in enumerate(self.labels)},
            "problem_type": "single_label_classification",
        }

    def encode(self, tokenizer: Any, inputs: Mapping[str, Sequence[str]]) -> Encoded:
        """Token ids of n texts, cut to `max_length`; how many were cut is counted."""
        texts = list(inputs["text"])
        encoded = tokenizer(texts, truncation=True, max_length=self.max_length, return_attention_mask=False)
        ids = encoded["input_ids"]
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        full = np.flatnonzero(lengths == self.max_length)  # only these can have lost anything
        whole = tokenizer([texts[i] for i in full], verbose=False)["input_ids"] if len(full) else []
        return Encoded(
            columns={
                name: np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum()))
                for name, rows in encoded.items()
            },
            offsets=np.concatenate(([0], np.cumsum(lengths))),
            pads={"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id},
            truncated=sum(len(row) > self.max_length for row in whole),
        )

    def columns_of(self, id2label: Mapping[Any, str], where: str) -> NDArray[np.int64]:
        """(C,) column of a teacher's logits for each label, matched by name, never by index; case is set aside
        where names do not match as they stand.

        `where` names the teacher in the `TeacherError` raised where the two label spaces differ.
        """
        for spelt in (str, str.casefold):
            theirs = {spelt(str(name)): int(i) for i, name in id2label.items()}
            ours = [spelt(label) for label in self.labels]
            if len(theirs) == len(id2label) == len(ours) and set(theirs) == set(ours):
                return np.array([theirs[label] for label in ours], dtype=np.int64)
        raise TeacherError(
            f"{where}: its labels {list(id2label.values())} are not those of task {self.name}: {list(self.labels)}",
            "Give its config.json an id2label with the task's names, or set the task's data.labels.",
        )

    def hard_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N,) cross-entropy; logits (N, C), labels (N,) int64."""
        return hard_cross_entropy(logits, labels)

    def soft_loss(self, logits: Tensor, target: Tensor, temperature: float) -> Tensor:
        """(N,) T² · KL(target ‖ student); logits and target (N, C)."""
        return soft_kl(logits, target, temperature)
