"""The texts of recordings out of what a model makes of their windows: tokens that overlap merged, or frames end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from pipeline.tasks.forced import readable
from pipeline.tasks.tensors import TensorBatch

Stride = tuple[float, float, float]
"""Of a window its length and how much of it its neighbours have, at the left and at the right, in seconds."""


def merged_texts(
    tokenizer: Any, ids: NDArray[np.int64], strides: Sequence[Stride], owners: NDArray[np.int64]
) -> list[str]:
    """The text of each of m recordings. ids: (S, length) token ids of their windows · owners: (S,) the recording of each.

    Where a recording has several windows, the tokens that stand at the end of one and at the beginning of the next are matched, as transformers' pipeline
    does it with ``chunk_length_s``.
    """
    texts = []
    for rows in np.split(np.arange(len(owners)), np.flatnonzero(np.diff(owners)) + 1):
        if len(rows) == 1:
            text = tokenizer.decode(ids[rows[0]], skip_special_tokens=True)
        else:
            parts = [{"tokens": ids[row][None], "stride": strides[row]} for row in rows]
            text, _ = tokenizer._decode_asr(
                parts, return_timestamps=None, return_language=None, time_precision=0.02
            )
        texts.append(str(text).strip())
    return texts


def frame_texts(
    model: Any, tokenizer: Any, batch: TensorBatch, strides: Sequence[Stride], owners: NDArray[np.int64]
) -> tuple[list[str], NDArray[np.float32], NDArray[np.int32]]:
    """Of a CTC model, for each of m recordings: its text, by the likeliest label of each frame, the sum of their log-probabilities, and its frames.

    Of windows that overlap each gives the frames up to the middle of what it has in common with its neighbour.
    """
    parts: list[list[Tensor]] = [[] for _ in range(int(owners[-1]) + 1)]
    for window, logits in enumerate(frame_logits(model, batch.inputs)):
        length, left, right = strides[window]
        first, last = round(len(logits) * left / length), len(logits) - round(len(logits) * right / length)
        parts[owners[window]].append(logits[first:last].float().log_softmax(dim=-1))
    texts, scores, lengths = [], [], []
    for own in parts:
        best, ids = torch.cat(own).max(dim=-1)
        texts.append(str(tokenizer.decode(ids.cpu())).strip())
        scores.append(float(best.sum()))
        lengths.append(len(ids))
    return texts, np.array(scores, dtype=np.float32), np.array(lengths, dtype=np.int32)


def frame_logits(model: Any, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Of each of S windows (frames, V) logits of a CTC model. One with a norm over all of a window's time would take padding for a part of it, so it reads one
    window at a time.

    inputs: ``input_values``, (S, samples) float padded on the right, and ``attention_mask`` of the same shape.
    """
    inputs = readable(inputs, model)
    waves, mask = inputs["input_values"], inputs["attention_mask"]
    samples = mask.sum(dim=-1)
    counts = model._get_feat_extract_output_lengths(samples).clamp(min=0).tolist()
    # a recording that is shorter than a frame has none, and a convolution takes no fewer samples
    least = max(0, _least_samples(model.config) - waves.shape[1])
    waves, mask = pad(waves, (0, least)), pad(mask, (0, least))
    if getattr(model.config, "feat_extract_norm", "layer") == "group":
        lengths = samples.clamp(min=_least_samples(model.config)).tolist()
        logits = [
            model(wave[:length].unsqueeze(0)).logits[0] for wave, length in zip(waves, lengths, strict=True)
        ]
    else:
        logits = list(model(waves, attention_mask=mask).logits)
    return [own[:count] for own, count in zip(logits, counts, strict=True)]


def _least_samples(config: Any) -> int:
    """Samples of one frame."""
    samples = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples
