"""A model writes texts: batched, sorted by length, with the score and the length of each text. PyTorch, no Ray."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch import Encoded, rows_of, token_budget_batches
from pipeline.config.generation import GenerationConfig
from pipeline.memory import run_batches
from pipeline.soft import Texts
from pipeline.tasks.forced import padded_on_the_left, readable
from pipeline.tasks.tensors import TensorBatch
from pipeline.tasks.transcribing import Stride, frame_texts, merged_texts
from pipeline.text_arrays import TEXT, text_array


@torch.inference_mode()
def write_texts(
    model: Any,
    tokenizer: Any,
    encoded: Encoded,
    generation: GenerationConfig,
    *,
    target_length: int,
    tokens: int,
    device: torch.device,
    share: tuple[int, int] = (0, 1),
) -> Texts:
    """What a model writes for n encoded sources, in their order.

    tokens: most padded tokens of the sources of a forward pass, beams counted; of a language model, which keeps what it has read, also of
    what it may write · share: (rank, world) of the batches that
    this process writes; the other examples have empty texts. Greedy and beam search do not depend on the batches but for
    rounding.
    """
    count, wide = generation.candidates, max(generation.beams, generation.candidates)
    texts = np.full((len(encoded), count), "", dtype=TEXT)
    scores = np.zeros((len(encoded), count), dtype=np.float32)
    lengths = np.zeros((len(encoded), count), dtype=np.int32)
    # memory peaks in the first batch, not in the last
    order = np.argsort(encoded.lengths, kind="stable")[::-1]
    rank, world = share
    if model.can_generate():
        know_ends(model, tokenizer)

    def work(rows: NDArray[np.int64]) -> None:
        batch = TensorBatch.of(encoded.pad(rows), device)
        if encoded.audio is not None and not model.can_generate():
            own_texts, own_scores, frames = frame_texts(
                model, tokenizer, batch, _strides(encoded, rows), batch.owners.cpu().numpy()
            )
            texts[rows, 0], scores[rows, 0], lengths[rows, 0] = own_texts, own_scores, frames
            return
        ids, own = _generate(model, batch, generation, target_length)
        if encoded.audio is not None:
            owners, windows = batch.owners.cpu().numpy(), (len(batch.owners), count)
            tokens, strides = ids.cpu().numpy().reshape(*windows, -1), _strides(encoded, rows)
            for one in range(count):
                texts[rows, one] = merged_texts(tokenizer, tokens[:, one], strides, owners)
            np.add.at(scores, rows[owners], own.reshape(windows))
            np.add.at(lengths, rows[owners], _lengths(ids, model).reshape(windows))
            return
        written = tokenizer.batch_decode(ids, skip_special_tokens=True)
        if model.config.is_encoder_decoder:  # a language model's space is that between prompt and text
            written = [text.strip() for text in written]
        texts[rows] = text_array(written).reshape(len(rows), count)
        scores[rows] = own.reshape(len(rows), count)
        lengths[rows] = _lengths(ids, model).reshape(len(rows), count)

    held = encoded.lengths if model.config.is_encoder_decoder else encoded.lengths + target_length
    run_batches(token_budget_batches(held, order, max(1, tokens // wide))[rank::world], work)
    return Texts(texts, scores, lengths)


def _strides(encoded: Encoded, rows: NDArray[np.int64]) -> list[Stride]:
    """Those of the windows of the recordings `rows`."""
    assert encoded.audio is not None, "of recordings"
    windows, _ = rows_of(encoded.sequences, rows)
    return encoded.audio.strides(windows)


def generation_settings(generation: GenerationConfig, target_length: int) -> dict[str, Any]:
    """The settings under transformers' names, as a model's generation_config.json has them."""
    sampling = {"do_sample": True, "temperature": generation.temperature, "top_k": 0, "top_p": 1.0}
    return {
        "max_new_tokens": target_length,
        "max_length": None,
        "num_beams": generation.beams,
        "length_penalty": generation.length_penalty,
        "no_repeat_ngram_size": generation.no_repeat_ngram or 0,
        "repetition_penalty": generation.repetition_penalty,
        **({"do_sample": False} if generation.temperature is None else sampling),
    }


def _generate(
    model: Any, batch: TensorBatch, generation: GenerationConfig, target_length: int
) -> tuple[Tensor, NDArray[np.float32]]:
    """(m · C, length) token ids, without those that the decoder starts from, and (m · C,) their log-probabilities."""
    from transformers import GenerationMixin

    keeper = _ScoreKeeper() if generation.beams == 1 else None
    inputs, first, generate = readable(batch.inputs, model), 1, model.generate
    if (
        "decoder_input_ids" in inputs
    ):  # Whisper's own generate makes prompts of its own, and reads what is longer than a window
        first, generate = inputs["decoder_input_ids"].shape[1], partial(GenerationMixin.generate, model)
    if not model.config.is_encoder_decoder:
        inputs, first = padded_on_the_left(batch.inputs), batch.inputs["input_ids"].shape[1]
    output = generate(
        **inputs,
        **generation_settings(generation, target_length),
        num_return_sequences=generation.candidates,
        return_dict_in_generate=True,
        output_scores=keeper is None,  # the beams' own; those of all tokens at all steps take gigabytes
        logits_processor=[] if keeper is None else [keeper],
    )
    ids = output.sequences[:, first:]
    if keeper is not None:
        return ids, keeper.total(output.sequences, _ends(model)).cpu().numpy()
    # transformers divides a beam's score by its length to the power of length_penalty
    lengths = torch.from_numpy(_lengths(ids, model)).to(output.sequences_scores)
    return ids, (output.sequences_scores * lengths**generation.length_penalty).float().cpu().numpy()


class _ScoreKeeper:
    """A logits processor that changes nothing and adds up the log-probabilities of the tokens that are written."""

    def __init__(self) -> None:
        self._start = -1
        self._before: Tensor | None = None
        self._steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`scores` unchanged; (m, V) of the next token, after `input_ids` (m, length)."""
        if self._before is None:
            self._start = input_ids.shape[1]
        else:
            self._steps.append(self._of(input_ids[:, -1]))
        self._before = scores.float().log_softmax(dim=-1)
        return scores

    def total(self, sequences: Tensor, ends: Tensor) -> Tensor:
        """(m,) the sums over the tokens up to the end mark. sequences: (m, length) · ends: ids of end marks."""
        steps = torch.stack([*self._steps, self._of(sequences[:, -1])], dim=1)
        written = sequences[:, self._start :]
        ended = torch.isin(written, ends).cumsum(dim=1)
        return (steps * ((ended == 0) | ((ended == 1) & torch.isin(written, ends)))).sum(dim=1)

    def _of(self, tokens: Tensor) -> Tensor:
        assert self._before is not None, "called once before"
        return self._before.gather(1, tokens.unsqueeze(1)).squeeze(1)


def know_ends(model: Any, tokenizer: Any) -> None:
    """Gives a model that does not know them the tokens that end a text and that pad it."""
    own = model.generation_config
    if own.eos_token_id is None:
        own.eos_token_id = tokenizer.eos_token_id
    if own.pad_token_id is None:
        end = own.eos_token_id
        own.pad_token_id = tokenizer.pad_token_id
        if own.pad_token_id is None:
            own.pad_token_id = end[0] if isinstance(end, list) else end


def _ends(model: Any) -> Tensor:
    """Ids of the tokens that end a text."""
    ends = model.generation_config.eos_token_id
    return torch.tensor(ends if isinstance(ends, list) else [ends], device=model.device)


def _lengths(ids: Tensor, model: Any) -> NDArray[np.int32]:
    """(m,) tokens of each text, its end mark counted."""
    ended = torch.isin(ids, _ends(model))
    inside = ended.cumsum(dim=1) - ended.long() == 0
    return inside.sum(dim=1).cpu().numpy().astype(np.int32)
