"""Hugging Face heads: the class of a kind, what its config says, a new head over a shared trunk."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from pipeline.config.kinds import Kind


def model_class(kind: Kind) -> Any:
    """The `AutoModelFor…` of transformers whose head the kind uses."""
    import transformers  # takes seconds, and the core's other users need none

    return getattr(transformers, kind.auto_class)


def label_settings(labels: Sequence[str]) -> dict[str, Any]:
    """What a head's config says of `labels`, in their order."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def attach_head(trunk: Any, kind: Kind, settings: dict[str, Any]) -> Any:
    """A model of the kind's class, in evaluation mode, whose base model is `trunk` itself; its head is drawn from
    torch's generator. settings: what its config says beside the trunk's own."""
    config = copy.deepcopy(trunk.config)
    config.update(settings)
    model = model_class(kind).from_config(config)
    setattr(model, model.base_model_prefix, trunk)
    return model.eval()
