"""Models that label frames: the texts that they learn, their loss, and a student that learns by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch.nn.functional import ctc_loss, kl_div

from pipeline.batch import NO_TOKEN, pad_targets
from pipeline.config.generation import TokenTargetsConfig
from pipeline.losses import FRAME_LOSSES, FrameInputs, LossInputs, LossWeights, ctc_surprise, task_loss
from pipeline.models import open_tokenizer
from pipeline.predictor import Predictor
from pipeline.soft import Sparse, Texts
from pipeline.tasks import Task
from pipeline.tasks.ctc import TOO_LONG, UNSPELLED, FrameHead, frame_pairs, of_model, spelled
from pipeline.tasks.recording import samples
from pipeline.tasks.tensors import TensorBatch
from pipeline.training.step import Aggregation, MicroBatch, SparseTargets, loss_inputs, predict
from students.export import save_task
from students.student import build_student
from tests.tiny_speech import RATE, ctc, recorded, reference, speech_task, whisper

torch.set_num_threads(1)
TEXTS = ["la ti do", "re", "do re la ti"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """References of recordings of the texts."""
    return recorded(tmp_path_factory.mktemp("recordings"), TEXTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that labels frames, with random weights."""
    return ctc(tmp_path_factory.mktemp("ctc"))


def task_of(folder: Path) -> Task:
    return of_model(speech_task(), open_tokenizer(folder))


def batch_of(task: Task, folder: Path, clips: list[str]) -> MicroBatch:
    encoded = task.head.encode(open_tokenizer(folder), {"source": clips, "target": TEXTS})
    assert encoded.targets is not None
    rows = np.arange(len(clips))
    own = TensorBatch.of(encoded.pad(rows), torch.device("cpu"))
    ids = encoded.targets.take(rows)
    own = TensorBatch(
        own.inputs, own.spots, own.owners, own.counts, own.words, torch.from_numpy(pad_targets(ids))
    )
    return MicroBatch(own, torch.from_numpy(ids.values), None)


def test_a_task_has_the_head_of_its_model(folder: Path, tmp_path: Path) -> None:
    """A CTC model has one text for each recording, whatever the settings of models with decoders."""
    beams = speech_task(beams=4, language="en")
    head = of_model(beams, open_tokenizer(folder)).head
    assert isinstance(head, FrameHead)
    assert (head.blank, head.generation.beams, head.generation.language) == (0, 1, "en")
    whole = speech_task()
    assert of_model(whole, open_tokenizer(whisper(tmp_path / "whisper"))) is whole


def test_texts_take_the_vocabularys_case_and_lose_its_unknown_punctuation(folder: Path) -> None:
    texts, lacking = spelled(open_tokenizer(folder), ["La, ti!  DO", "la 2 do", "", "“re”"])
    assert texts == ["la ti do", "la do", "", "re"]
    assert lacking.tolist() == [False, True, False, False]


def test_texts_that_cannot_be_learnt(folder: Path, clips: list[str]) -> None:
    """0.3 s have 14 frames; two equal letters need three."""
    head, tokenizer = task_of(folder).head, open_tokenizer(folder)
    assert isinstance(head, FrameHead)
    texts = ["l" * 7, "l" * 8, "la" * 7, "xyz", "...", ""]
    faults = head.faults(tokenizer, [clips[1]] * 6, texts)
    assert faults[TOO_LONG].tolist() == [False, True, False, False, False, False]
    assert faults[UNSPELLED].tolist() == [False, False, False, True, True, False]


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_a_recording_that_is_shorter_than_a_frame_has_no_text(
    clips: list[str], tmp_path: Path, norm: Literal["group", "layer"]
) -> None:
    """wav2vec2's first frame takes 400 samples."""
    import soundfile

    folder, files = ctc(tmp_path / "model", norm=norm), [tmp_path / "399.wav", tmp_path / "400.wav"]
    for file in files:
        soundfile.write(file, np.full(int(file.stem), 0.1), RATE)
    short = [reference(file) for file in files]
    predictor = Predictor(folder, speech_task())
    texts, _ = predictor.predict({"source": [*short, clips[0]]})
    assert isinstance(texts, Texts)
    assert texts.values[0, 0] == ""
    assert texts.values[2, 0] == written_alone(predictor, clips[0])
    assert written_alone(predictor, short[0]) == ""
    sparse, _, _ = predictor.force(frame_pairs(speech_task(), short).inputs, TokenTargetsConfig())
    assert isinstance(sparse, Sparse)
    assert sparse.counts.tolist() == [0, 1]


def written_alone(predictor: Predictor, clip: str) -> str:
    texts, _ = predictor.predict({"source": [clip]})
    assert isinstance(texts, Texts)
    return str(texts.values[0, 0])


def test_the_loss_is_of_each_text_alone() -> None:
    """Two frames of two letters and the blank, by hand: of "a" the labellings aa, a-, -a."""
    logits = torch.log(torch.tensor([[[0.5, 0.3, 0.2], [0.6, 0.1, 0.3]], [[0.1, 0.8, 0.1], [9.0, 9.0, 9.0]]]))
    frames = FrameInputs(logits, torch.tensor([2, 1]), torch.tensor([[1], [1]]), 0)
    a = 0.3 * 0.1 + 0.3 * 0.6 + 0.5 * 0.1
    torch.testing.assert_close(ctc_surprise(frames), -torch.log(torch.tensor([a, 0.8])))
    none = FrameInputs(logits[1:], torch.tensor([1]), torch.tensor([[1, 2]]), 0)
    assert ctc_surprise(none).tolist() == [0.0], "two letters of one frame"
    inputs = LossInputs(logits, torch.zeros(0), None, torch.tensor([1.0, 0.0]), frames=frames)
    total, terms = task_loss(inputs, LossWeights({"hard": 1.0}, 1.0, task=2.0), 4.0, FRAME_LOSSES)
    assert total.item() == pytest.approx(-2 * np.log(a) / 4)
    assert terms["hard"].item() == pytest.approx(-np.log(a) / 4)


def test_the_loss_does_not_depend_on_padding(folder: Path, clips: list[str]) -> None:
    task, tokenizer = task_of(folder), open_tokenizer(folder)
    student = build_student(folder, [task]).eval()
    batch = batch_of(task, folder, clips)
    assert batch.tokens.target is not None
    output = student("speech", batch.tokens.inputs, target=batch.tokens.target)
    values = task.head.read_out(output, batch.tokens)
    inputs = loss_inputs(task, values, batch, LossWeights({"hard": 1.0}, 1.0), None)
    assert inputs.frames is not None
    for row, clip in enumerate(clips):
        wave = torch.from_numpy(samples(clip, RATE))[None]
        wave = (wave - wave.mean()) / torch.sqrt(wave.var(correction=0) + 1e-7)
        logits = student.model("speech")(wave).logits
        ids = torch.tensor(tokenizer(TEXTS[row]).input_ids)
        assert batch.tokens.target[row][batch.tokens.target[row] != NO_TOKEN].tolist() == ids.tolist()
        lengths = torch.tensor([logits.shape[1]]), torch.tensor([len(ids)])
        own = ctc_loss(logits.log_softmax(-1).transpose(0, 1), ids[None], *lengths, reduction="sum")
        torch.testing.assert_close(ctc_surprise(inputs.frames)[row], own, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("form", ["top", "sampled"])
def test_targets_of_frames_are_the_teachers_whatever_the_batch(
    folder: Path, clips: list[str], form: Literal["top", "sampled"]
) -> None:
    predictor = Predictor(folder, speech_task(), tokens_per_forward=1)
    asked = frame_pairs(speech_task(), clips)
    sparse, _, _ = predictor.force(asked.inputs, TokenTargetsConfig(form=form, ids=4))
    assert isinstance(sparse, Sparse)
    head = task_of(folder).head
    assert isinstance(head, FrameHead)
    assert sparse.counts.tolist() == head.frames(clips, RATE).tolist()
    together, _, _ = Predictor(folder, speech_task()).force(asked.inputs, TokenTargetsConfig(ids=4))
    assert isinstance(together, Sparse)
    if form == "top":
        np.testing.assert_array_equal(sparse.ids.values[:, 0], together.ids.values[:, 0])
        np.testing.assert_allclose(sparse.log_probabilities, together.log_probabilities, atol=1e-3)


def test_the_soft_loss_is_frame_by_frame_and_0_for_the_teacher_itself(folder: Path, clips: list[str]) -> None:
    """With all ids stored; the frames of recordings of several lengths, one after another."""
    task, temperature = task_of(folder), 2.0
    sparse, _, _ = Predictor(folder, speech_task()).force(
        frame_pairs(task, clips).inputs, TokenTargetsConfig(ids=1000)
    )
    assert isinstance(sparse, Sparse)
    ids, logs, rest = (torch.from_numpy(one)[None] for one in sparse.arrays)
    batch = replace(batch_of(task, folder, clips), teachers=SparseTargets(ids, logs, rest, len(sparse.space)))
    weights, together = (
        LossWeights({"hard": 0.5, "soft": 0.5}, temperature),
        Aggregation("mean", torch.ones(1)),
    )
    student = build_student(folder, [task]).eval()

    def logits() -> torch.Tensor:
        output = student("speech", batch.tokens.inputs, target=batch.tokens.target)
        return task.head.read_out(output, batch.tokens).detach()

    def terms(values: torch.Tensor) -> dict[str, torch.Tensor]:
        inputs = loss_inputs(task, values, batch, weights, together)
        return task_loss(inputs, weights, 1.0, task.head.losses)[1]

    teacher = logits()
    assert terms(teacher)["soft"].item() == pytest.approx(0, abs=1e-3)
    student.model("speech").lm_head.weight.data *= 30
    own = logits()
    assert isinstance(task.head, FrameHead)
    there = torch.arange(own.shape[1]) < torch.from_numpy(task.head.frames(clips, RATE))[:, None]
    target, log_own = (teacher[there] / temperature).softmax(-1), (own[there] / temperature).log_softmax(-1)
    expected = temperature**2 * kl_div(log_own, target, reduction="sum")
    assert expected > 1
    torch.testing.assert_close(terms(own)["soft"], expected, rtol=1e-3, atol=1e-3)


def test_a_student_learns_and_its_folder_writes_what_it_wrote(
    folder: Path, clips: list[str], tmp_path: Path
) -> None:
    """Its convolutions keep their weights; a layer is cut."""
    from transformers import pipeline

    task, tokenizer = task_of(folder), open_tokenizer(folder)
    student = build_student(folder, [task], layers=1, dropout=0.0)
    before = {
        name: one.clone() for name, one in student.encoder.named_parameters() if "feature_extractor" in name
    }
    optimizer = torch.optim.Adam([one for one in student.parameters() if one.requires_grad], lr=1e-2)
    batch, weights = batch_of(task, folder, clips), LossWeights({"hard": 1.0}, 1.0)
    student.train()
    for _ in range(200):
        output = student("speech", batch.tokens.inputs, target=batch.tokens.target)
        inputs = loss_inputs(task, task.head.read_out(output, batch.tokens), batch, weights, None)
        total, _ = task_loss(inputs, weights, 20.0, task.head.losses)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    encoded = task.head.encode(tokenizer, {"source": clips})
    texts = predict(student, task, encoded, 4096, tokenizer=tokenizer)[:, 0].tolist()
    assert texts == TEXTS
    after = dict(student.encoder.named_parameters())
    assert all(torch.equal(one, after[name]) for name, one in before.items())
    save_task(student, "speech", tokenizer, tmp_path / "student")
    transcribe: Any = pipeline("automatic-speech-recognition", str(tmp_path / "student"))
    sounds = [{"raw": samples(one, RATE), "sampling_rate": RATE} for one in clips]
    assert [transcribe(sound)["text"].strip() for sound in sounds] == TEXTS
    beams = speech_task(beams=2, candidates=2)  # those of models with decoders
    written, _ = Predictor(tmp_path / "student", beams).predict({"source": clips})
    assert isinstance(written, Texts)
    assert written.values.tolist() == [[text] for text in TEXTS]
