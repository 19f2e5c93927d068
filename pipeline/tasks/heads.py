"""Hugging Face heads: what item kinds share, a kind's model class, its config's label settings, a new head over a shared trunk."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from pipeline.config.kinds import Kind
from pipeline.errors import ConfigError


class ItemHead:
    """What the heads of all kinds share that predict numbers for items."""

    decoding: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """See `pipeline.tasks.task.Head`: nothing but the model decides numbers."""

    max_length: int

    def positions(self, max_length: int | None) -> int:
        """See `pipeline.tasks.task.Head`: those of a sequence."""
        return max_length or self.max_length


CTC = "AutoModelForCTC"
"""The class of models of speech that label frames."""


def is_ctc(architectures: Sequence[str] | None) -> bool:
    """Whether a config's `architectures` are of a model of speech that labels frames."""
    return any(name.endswith("ForCTC") for name in architectures or ())


def model_class(kind: Kind, architectures: Sequence[str] | None = None) -> Any:
    """The `AutoModelFor…` of transformers whose head the kind uses. architectures: of a model of speech, which has one of two heads."""
    import transformers  # here: the import takes seconds, and most users of this package do not need it

    return getattr(transformers, CTC if kind.audio and is_ctc(architectures) else kind.auto_class)


def label_settings(labels: Sequence[str]) -> dict[str, Any]:
    """The config settings of a head for `labels`: `num_labels`, `id2label` and `label2id`."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def attach_head(trunk: Any, kind: Kind, settings: dict[str, Any]) -> Any:
    """A model of the kind's class, in evaluation mode, whose base model is `trunk` itself (not a copy).

    The weights of its head are drawn from torch's generator. settings: added to the trunk's config. Of a trunk that writes,
    the model has the encoder, and where its class asks for one the decoder. Raises `ConfigError` where transformers has no
    such model of the trunk's architecture.
    """
    if trunk.config.model_type == "encoder-decoder":
        return attach_head(trunk.encoder, kind, settings)
    if trunk.get_output_embeddings() is not None:
        return _attach_to_writer(trunk, kind, settings)
    config = copy.deepcopy(trunk.config)
    config.update(settings)
    model = model_class(kind).from_config(config)
    setattr(model, model.base_model_prefix, trunk)
    return model.eval()


STACKS = ("shared", "encoder", "decoder")
"""Names of the embeddings and the two stacks in models with encoder and decoder, such as T5's and BART's."""


def _attach_to_writer(trunk: Any, kind: Kind, settings: dict[str, Any]) -> Any:
    config = copy.deepcopy(trunk.config)
    config.update(settings)
    try:
        model = model_class(kind).from_config(config)
    except ValueError:
        raise ConfigError(
            f"transformers has no {kind.auto_class.removeprefix('AutoModel')} of a {config.model_type}: a student that writes with it cannot have a {kind.name} task",
            "Give the tasks to students of their own (students.<student>.tasks), or take a model of T5's family.",
        ) from None
    own, shared = (getattr(one, one.base_model_prefix, getattr(one, "model", one)) for one in (model, trunk))
    for name in STACKS:
        if hasattr(own, name):
            setattr(own, name, getattr(shared, name))
    return model.eval()
