"""Hugging Face heads: a kind's model class, its config's label settings, a new head over a shared trunk."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from pipeline.config.kinds import Kind


def model_class(kind: Kind) -> Any:
    """The `AutoModelFor…` of transformers whose head the kind uses."""
    import transformers  # here: the import takes seconds, and most users of this package do not need it

    return getattr(transformers, kind.auto_class)


def label_settings(labels: Sequence[str]) -> dict[str, Any]:
    """The config settings of a head for `labels`: `num_labels`, `id2label` and `label2id`."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def attach_head(trunk: Any, kind: Kind, settings: dict[str, Any]) -> Any:
    """A model of the kind's class, in evaluation mode, whose base model is `trunk` itself (not a copy).

    The weights of its head are drawn from torch's generator. settings: added to the trunk's config.
    """
    config = copy.deepcopy(trunk.config)
    config.update(settings)
    model = model_class(kind).from_config(config)
    setattr(model, model.base_model_prefix, trunk)
    return model.eval()
