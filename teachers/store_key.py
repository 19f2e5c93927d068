"""The names of a teacher's soft targets, token targets and hidden targets in the store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pipeline.arithmetic import Dtype
from pipeline.config.generation import TokenTargetsConfig
from pipeline.models import fingerprint
from pipeline.soft import Layer
from pipeline.tasks import Task
from pipeline.tasks.words import VERSION
from pipeline.tasks.writing import writing_head


def store_key(
    folder: Path,
    task: Task,
    dtype: Dtype,
    *,
    max_length: int | None = None,
    labels: Mapping[str, str | None] | None = None,
) -> str:
    """The name of a teacher's soft targets in the store: a hash of all that decides them except the example.

    Weights, tokenizer and config by content; kind, the version of how it reads a text, columns, max_length, dtype, how it
    writes texts and label mapping by value, and with a mapping the problem, which sums or chooses among what it maps.
    """
    facts: list[Any] = [
        fingerprint(folder),
        task.kind.name,
        task.head.version,
        list(task.head.columns),
        max_length or task.head.max_length,
        dtype,
    ]
    if task.head.decoding:
        facts.append(dict(task.head.decoding))
    if labels is not None:
        facts += [sorted(labels.items()), task.kind.problem]
    return blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def token_key(
    folder: Path, task: Task, dtype: Dtype, form: TokenTargetsConfig, *, max_length: int | None = None
) -> str:
    """The name of a teacher's token targets in the store: a hash of all that decides them except source and text.

    As `store_key`, with what is stored of a distribution, and without the settings by which the teacher writes.
    """
    head = writing_head(task)
    facts = [
        "tokens",
        fingerprint(folder),
        task.kind.name,
        head.version,
        max_length or head.max_length,
        head.prefix,
        head.target_length,
        dtype,
        form.model_dump(mode="json"),
    ]
    return blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


def hidden_key(folder: Path, task: Task, dtype: Dtype, layer: Layer, *, max_length: int | None = None) -> str:
    """The name of a teacher's hidden targets in the store: a hash of all that decides them except the example.

    As `store_key`, without labels, and with the layer and the version of words.
    """
    facts = [
        "hidden",
        fingerprint(folder),
        task.kind.name,
        VERSION,
        task.head.version,
        max_length or task.head.max_length,
        dtype,
        layer.index,
    ]
    return blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
