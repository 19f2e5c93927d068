"""One file a task kind: columns → features, label space, losses, soft-target alignment, metric.

`Task` is what every kind offers; the rest of the code knows no kind by name. To add one, write its file
and give it a line in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import Encoded
from pipeline.tasks.text_classification import TextClassification


class Task(Protocol):
    """A task of some kind. Frozen, picklable, free of weights."""

    kind: ClassVar[str]
    fields: ClassVar[tuple[str, ...]]
    """Input columns, those that make up an example's content."""

    @property
    def name(self) -> str:
        """The task's name in the config."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """The label space, in order."""
        ...

    @property
    def max_length(self) -> int:
        """Tokens an example, special tokens counted."""
        ...

    @property
    def metric(self) -> str:
        """The score that selects and compares models."""
        ...

    @staticmethod
    def model_class() -> Any:
        """The `AutoModelFor…` whose head the kind uses."""
        ...

    def head_settings(self) -> dict[str, Any]:
        """What the head's Hugging Face config must say."""
        ...

    def encode(self, tokenizer: Any, inputs: Mapping[str, Sequence[str]]) -> Encoded:
        """n examples → token ids."""
        ...

    def columns_of(self, id2label: Mapping[Any, str], where: str) -> NDArray[np.int64]:
        """(C,) column of a teacher's logits for each of the task's labels."""
        ...

    def hard_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N,) loss against labels."""
        ...

    def soft_loss(self, logits: Tensor, target: Tensor, temperature: float) -> Tensor:
        """(N,) loss against aggregated soft targets."""
        ...


KINDS = {TextClassification.kind: TextClassification}
