"""The scores of a model under untrained heads, which a trained head must clearly exceed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batch import Examples
from pipeline.predictor import Predictor
from pipeline.tasks.scores import score_of

HEADS = 8  # their mean and standard deviation make the bound
HEAD_EXAMPLES = 100  # of the sample: the encoder's states of all of them are in memory at once


class _Replay(torch.nn.Module):
    """Stands in an encoder's place: returns the encoder's recorded outputs, one at each call, in their order."""

    def __init__(self, outputs: Iterable[Any]) -> None:
        super().__init__()
        self.outputs = iter(outputs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The next recorded output, whatever the arguments."""
        return next(self.outputs)


def random_head_scores(teacher: Predictor, sample: Examples) -> NDArray[np.float64]:
    """(`HEADS`,) the task's metric on the sample's first `HEAD_EXAMPLES` under random heads; each call draws the same.

    The encoder runs once. The teacher's head is overwritten: do not use the teacher afterwards. Empty for a model
    whose encoder is no module of its own.
    """
    model, prefix = teacher.model, teacher.model.base_model_prefix
    encoder = getattr(model, prefix, None)
    if encoder is None:
        return np.empty(0)
    examples = sample.take(np.arange(min(HEAD_EXAMPLES, len(sample))))
    inputs = {name: examples.inputs[name] for name in teacher.task.reading.fields}
    outputs: list[Any] = []
    hook = encoder.register_forward_hook(lambda *call: outputs.append(call[-1]))
    teacher.predict(inputs)
    hook.remove()
    head = [parameter for name, parameter in model.named_parameters() if not name.startswith(f"{prefix}.")]
    scores = []
    for seed in range(HEADS):
        generator = torch.Generator().manual_seed(seed)
        for parameter in head:
            _redraw(parameter, generator)
        setattr(model, prefix, _Replay(outputs))
        scores.append(score_of(teacher.task, teacher.predict(inputs)[0].values, examples))
    setattr(model, prefix, encoder)
    return np.array(scores)


def _redraw(parameter: torch.nn.Parameter, generator: torch.Generator) -> None:
    """Draws weights from N(0, 0.02²), as BERT's heads start; parameters of one dimension (biases, norms) stay."""
    if parameter.dim() > 1:
        with torch.no_grad():
            parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.02, generator=generator))
