"""One shared encoder, one Hugging Face head a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pipeline.config.adapters import LoraConfig
from pipeline.config.kinds import SPEECH_RECOGNITION
from pipeline.config.schema import StackLayersConfig
from pipeline.models import open_config, open_model, open_tokenizer
from pipeline.tasks import Task
from pipeline.tasks.forced import output_along
from pipeline.tasks.heads import is_ctc, model_class
from pipeline.tasks.tensors import TensorWords
from pipeline.tasks.transcribing import frame_logits
from pipeline.tasks.words import word_means
from students.adapters import add_adapters
from students.decoder import with_decoder
from students.layer_init import truncate

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FrameOutput(NamedTuple):
    """Of a model that labels frames. logits: (S, frames, V), padded by 0."""

    logits: Tensor


class MultiTaskStudent(nn.Module):
    """Hugging Face models, one a task, that share one encoder.

    Every task's model is the plain `AutoModelFor…` of its kind with its base model replaced by the shared
    encoder, so any encoder architecture works and every task can be saved as an ordinary folder.

    hidden: by task, the dimensions of its teachers' hidden vectors, end to end. The projections into them are trained
    with the rest and are in no task's model, so that an exported folder does not have them.
    """

    def __init__(
        self,
        encoder: PreTrainedModel,
        tasks: Sequence[Task],
        hidden: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.tasks = {task.name: task for task in tasks}
        self.encoder = encoder
        self.models = nn.ModuleList(task.head.attach(encoder) for task in tasks)
        self._position = {task.name: i for i, task in enumerate(tasks)}
        self.projections = nn.ModuleList(
            nn.Linear(encoder.config.hidden_size, hidden[task.name]) for task in tasks if task.name in hidden
        )
        self._projection = {
            name: i for i, name in enumerate(task.name for task in tasks if task.name in hidden)
        }

    def model(self, task: str) -> Any:
        """The task's Hugging Face model, encoder included."""
        return self.models[self._position[task]]

    def forward(
        self,
        task: str,
        inputs: Mapping[str, Tensor],
        words: TensorWords | None = None,
        target: Tensor | None = None,
    ) -> Any:
        """The output of the task's Hugging Face model. inputs: what the tokenizer returns, (S, length) int64 each.

        target: (S, length) int64 token ids that the decoder is forced along, padded by `NO_TOKEN`, where the task's kind
        writes; a model that labels frames gives them whatever the text (`FrameOutput`). With `words` also, as the second of two, (W, D) the projections of the words' mean vectors after the last layer.
        """
        if target is not None and "input_values" in inputs:
            return FrameOutput(pad_sequence(frame_logits(self.model(task), inputs), batch_first=True))
        if target is not None:
            return output_along(self.model(task), inputs, target)
        if words is None:
            return self.model(task)(**inputs)
        output = self.model(task)(**inputs, output_hidden_states=True)
        means = word_means(output.hidden_states[-1], words)
        return output, self.projections[self._projection[task]](means)


def build_student(
    folder: Path,
    tasks: Sequence[Task],
    *,
    layers: int | Sequence[int] | StackLayersConfig | None = None,
    dropout: float | None = None,
    seed: int = 0,
    hidden: Mapping[str, int] = MappingProxyType({}),
    lora: LoraConfig | None = None,
    trained: Mapping[str, Path] = MappingProxyType({}),
) -> MultiTaskStudent:
    """A student with the model in `folder`, cut to `layers`, and new heads drawn at random from `seed`. Where a task's kind writes
    and the model has no decoder it gets one. A language model, and a model of speech, has tasks of its own kind alone (`students.layer_init.check_kinds`).

    layers: see `students.layer_init.truncate` · dropout: of every dropout module, None for the model's own ·
    hidden: see `MultiTaskStudent`; projections are drawn last, so that heads do not depend on them ·
    lora: adapters that train in place of the model's own weights, drawn after all else (`students.adapters`) · trained: folders by task that
    `students.export.save_task` wrote of such a student: the weights of its heads are theirs.
    """
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = open_config(folder)
        if dropout is not None:  # modules read it when they are made
            set_dropout(config, dropout)
        if not any(task.kind.writes for task in tasks):
            trunk = open_model(AutoModel, folder, config=config)
        elif any(task.kind.audio for task in tasks):
            trunk = _speech_model(folder, config)
        elif any(task.kind.decoder_only for task in tasks):
            trunk = open_model(AutoModelForCausalLM, folder, config=config)
        elif config.is_encoder_decoder:
            trunk = open_model(AutoModelForSeq2SeqLM, folder, config=config)
        else:
            trunk = with_decoder(open_model(AutoModel, folder, config=config), folder, open_tokenizer(folder))
        if layers is not None:
            trunk = truncate(trunk, layers)
        # a CTC model's convolutions keep their weights, as is usual: arXiv:2006.11477, section 4.3
        freeze: Any = getattr(trunk, "freeze_feature_encoder", None)
        if freeze is not None:
            freeze()
        student = MultiTaskStudent(trunk, tasks, hidden)
        for name, own in trained.items():
            _load_head(student, name, own)
        if lora is not None:
            add_adapters(student.encoder, lora)
        return student


def _load_head(student: MultiTaskStudent, name: str, folder: Path) -> None:
    """Gives a task's model the weights in `folder`. Of a task that writes they are the encoder's and decoder's, which are there."""
    kind = student.tasks[name].kind
    if kind.writes:
        return
    weights = open_model(model_class(kind), folder, complete=True).state_dict()
    # a pooler that the shared encoder has, and this class of models lacks, is in no such folder
    unexpected = student.model(name).load_state_dict(weights, strict=False).unexpected_keys
    assert not unexpected, f"{folder} has weights of another model: {unexpected}"


def _speech_model(folder: Path, config: Any) -> Any:
    """A model that writes, or labels frames: then nothing is masked or left out at random by draws that are not PyTorch's, which a training could
    not go on with, or that differ between workers."""
    if is_ctc(config.architectures):
        config.apply_spec_augment, config.layerdrop = False, 0.0
    return open_model(model_class(SPEECH_RECOGNITION, config.architectures), folder, config=config)


def open_trained(folder: Path, task: Task) -> MultiTaskStudent:
    """The model in `folder`, which has a head for the task, as a student of this task alone. Raises `TeacherError` where weights are missing."""
    model: Any = open_model(model_class(task.kind), folder, complete=True)
    with torch.random.fork_rng():  # the head that is drawn is not used
        student = MultiTaskStudent(model.base_model, [task])
    student.models[0] = model
    return student


def set_dropout(config: Any, dropout: float) -> None:
    """Sets every dropout probability that a model's config has."""
    for name, value in config.to_dict().items():
        if name.endswith(("dropout", "dropout_prob")) and isinstance(value, int | float):
            setattr(config, name, dropout)
