"""Kind speech-recognition: what is read, written and scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.batch import pad_targets
from pipeline.config.generation import TokenTargetsConfig
from pipeline.data.splits import read_examples
from pipeline.errors import TeacherError
from pipeline.models import open_tokenizer
from pipeline.predictor import Predictor
from pipeline.soft import Texts
from pipeline.tasks.forced import output_along
from pipeline.tasks.hearing import speech_head
from pipeline.tasks.label_columns import Column
from pipeline.tasks.listening import listener_of
from pipeline.tasks.recording import samples
from pipeline.tasks.skill import relative_losses
from pipeline.tasks.speech_recognition import SpeechScoring
from pipeline.tasks.tensors import TensorBatch
from pipeline.tasks.transcribing import merged_texts
from pipeline.text_arrays import text_array
from students.export import save_task
from students.student import build_student
from tests.tiny_speech import RATE, WINDOW_S, ctc, recorded, speech_task, whisper

torch.set_num_threads(1)
TEXTS = ["la ti do", "re", "do re la ti"]
LONG = "la ti do re la ti do re la"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """References of recordings of the texts, and of one that is longer than the models' window."""
    return recorded(tmp_path_factory.mktemp("recordings"), [*TEXTS, LONG])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of Whisper's architecture that has learnt the texts by heart."""
    folder = whisper(tmp_path_factory.mktemp("models") / "whisper")
    recordings = recorded(tmp_path_factory.mktemp("learnt"), TEXTS)
    task, tokenizer = speech_task(), open_tokenizer(folder)
    student = build_student(folder, [task])
    encoded = task.head.encode(tokenizer, {"source": recordings, "target": TEXTS})
    assert encoded.targets is not None
    batch = TensorBatch.of(encoded.pad(np.arange(3)), torch.device("cpu"))
    target = torch.from_numpy(pad_targets(encoded.targets.take(np.arange(3))))
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    student.train()
    for _ in range(60):
        logits = student("speech", batch.inputs, target=target).logits
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_task(student.eval(), "speech", tokenizer, folder.with_name("learnt"))
    return folder.with_name("learnt")


def written(predictor: Predictor, recordings: list[str]) -> NDArray[Any]:
    texts, _ = predictor.predict({"source": recordings})
    assert isinstance(texts, Texts)
    return texts.values


def test_a_key_is_the_recordings_content(clips: list[str]) -> None:
    task = speech_task()
    columns = {"audio": Column(clips), "text": Column([*TEXTS, None])}
    examples = read_examples(task, "train", columns)
    moved = [one.replace("/recordings", "/elsewhere") for one in clips]
    assert moved != clips
    again = read_examples(task, "train", {**columns, "audio": Column(moved)})
    assert (examples.keys == again.keys).all()
    assert len(set(examples.keys.tolist())) == 4
    assert task.reading.labelled(examples.labels).tolist() == [True, True, True, False]


def test_a_short_recording_is_one_window_and_a_long_one_several(model: Path, clips: list[str]) -> None:
    encoded = speech_task().head.encode(open_tokenizer(model), {"source": clips})
    assert np.diff(encoded.sequences).tolist() == [1, 1, 1, 2]
    assert encoded.lengths.tolist() == [100, 100, 100, 200]
    assert encoded.audio is not None
    (first, second) = encoded.audio.strides(np.array([3, 4]))
    assert first == pytest.approx((WINDOW_S, 0, WINDOW_S / 6))
    assert second == pytest.approx((2.7 - 4 / 3, WINDOW_S / 6, 0), abs=1e-4)


def test_features_are_the_extractors_and_are_kept_by_content(
    model: Path, clips: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from transformers import WhisperFeatureExtractor

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    encoded = speech_task().head.encode(open_tokenizer(model), {"source": clips})
    read = encoded.pad(np.array([0, 3])).inputs["input_features"]
    extractor = WhisperFeatureExtractor.from_pretrained(model)
    whole, long = samples(clips[0], RATE), samples(clips[3], RATE)
    starts = round(WINDOW_S * RATE * 2 / 3)
    windows = [whole, long[: WINDOW_S * RATE], long[starts:]]
    expected = extractor(windows, sampling_rate=RATE, return_tensors="np")["input_features"]
    np.testing.assert_allclose(read, expected, atol=1e-5)
    kept = list((tmp_path / "tutelage" / "features").rglob("*.npy"))
    assert len(kept) == 3
    monkeypatch.setattr("pipeline.tasks.listening.samples", None)  # nothing is decoded again
    np.testing.assert_array_equal(encoded.pad(np.array([0, 3])).inputs["input_features"], read)
    kept[0].write_bytes(b"damaged")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    np.testing.assert_array_equal(encoded.pad(np.array([0, 3])).inputs["input_features"], read)


def test_a_model_writes_what_the_pipeline_of_its_folder_does(model: Path, clips: list[str]) -> None:
    from transformers import pipeline

    predictor = Predictor(model, speech_task())
    texts = written(predictor, clips)[:, 0].tolist()
    assert texts[:3] == TEXTS, "it knows them by heart"
    transcribe: Any = pipeline("automatic-speech-recognition", str(model))
    for reference, text in zip(clips[:3], texts, strict=False):
        sound = {"raw": samples(reference, RATE), "sampling_rate": RATE}
        assert transcribe(sound)["text"].strip() == text
    sound = {"raw": samples(clips[3], RATE), "sampling_rate": RATE}
    merged = transcribe(sound, chunk_length_s=WINDOW_S, ignore_warning=True)["text"].strip()
    assert merged == texts[3], "cut and merged as the pipeline does it"


def test_what_is_written_does_not_depend_on_the_batch(model: Path, clips: list[str]) -> None:
    together = written(Predictor(model, speech_task()), clips)
    alone = written(Predictor(model, speech_task(), tokens_per_forward=1), clips)
    assert together.tolist() == alone.tolist()


def test_beams_give_several_candidates_with_scores(model: Path, clips: list[str]) -> None:
    texts, _ = Predictor(model, speech_task(beams=3, candidates=2)).predict({"source": clips})
    assert isinstance(texts, Texts)
    assert texts.values.shape == texts.scores.shape == (4, 2)
    assert (texts.scores[:, 0] >= texts.scores[:, 1]).all()
    assert texts.values[:3, 0].tolist() == TEXTS


def test_texts_of_windows_that_overlap_are_merged() -> None:
    from tests.tiny_speech import whisper_tokenizer

    tokenizer = whisper_tokenizer()
    ids = [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (" la ti do", " ti do re", " re")
    ]
    padded = np.full((3, max(map(len, ids))), tokenizer.eos_token_id)
    for row, own in enumerate(ids):
        padded[row, : len(own)] = own
    strides = [(2.0, 0.0, 1 / 3), (2.0, 1 / 3, 0.0), (1.0, 0.0, 0.0)]
    assert merged_texts(tokenizer, padded, strides, np.array([0, 0, 1])) == ["la ti do re", "re"]


def test_the_decoder_is_forced_from_its_prompt(model: Path, clips: list[str]) -> None:
    predictor, task = Predictor(model, speech_task()), speech_task()
    encoded = task.head.encode(predictor.tokenizer, {"source": clips[:3], "target": TEXTS})
    assert encoded.targets is not None
    batch = TensorBatch.of(encoded.pad(np.arange(3)), torch.device("cpu"))
    target = torch.from_numpy(pad_targets(encoded.targets.take(np.arange(3))))
    with torch.no_grad():
        logits = output_along(predictor.model, batch.inputs, target).logits
        prompt = torch.tensor([predictor.tokenizer.prefix_tokens] * 3)
        whole = torch.cat((prompt, target.clamp(min=0)), dim=1)
        features = batch.inputs["input_features"]
        expected = predictor.model(input_features=features, decoder_input_ids=whole).logits[:, 1:-1]
    assert logits.shape[:2] == target.shape
    torch.testing.assert_close(logits, expected)
    forced, _, _ = predictor.force({"source": clips, "text": [*TEXTS, LONG]}, TokenTargetsConfig())
    assert len(forced) == 4


def test_a_ctc_model_labels_frames_whatever_the_batch(tmp_path: Path, clips: list[str]) -> None:
    from transformers import pipeline

    folder = ctc(tmp_path)
    texts = written(Predictor(folder, speech_task()), clips)[:, 0].tolist()
    transcribe: Any = pipeline("automatic-speech-recognition", str(folder))
    sounds = [{"raw": samples(one, RATE), "sampling_rate": RATE} for one in clips]
    assert texts == [transcribe(sound)["text"].strip() for sound in sounds]
    with pytest.raises(TeacherError, match="labels frames, and has one text"):
        speech_head(speech_task(beams=2, candidates=2)).listener(open_tokenizer(folder))


def test_models_that_do_not_fit_are_refused(model: Path, tmp_path: Path, tiny_model: Any) -> None:
    with pytest.raises(TeacherError, match="target_length 40 is more than the 38 positions"):
        speech_head(speech_task(target_length=40)).listener(open_tokenizer(model))
    with pytest.raises(TeacherError, match="needs a …WhisperForConditionalGeneration or …ForCTC"):
        Predictor(tiny_model("bert", ("a", "b")), speech_task())
    with pytest.raises(TeacherError, match="no feature extractor"):
        listener_of(str(tiny_model("bert")), None)


def test_scores_are_one_minus_error_rates(clips: list[str]) -> None:
    task = speech_task()
    examples = read_examples(task, "test", {"audio": Column(clips[:3]), "text": Column(TEXTS)})
    values = text_array([["la ti do"], ["do"], ["do re la"]])
    scores = task.scoring.scores(values, examples)
    assert scores["wer"] == pytest.approx(2 / 8)
    assert scores["word_accuracy"] == pytest.approx(6 / 8)
    assert scores["word_accuracy"] == float(
        task.scoring.score_of(task.scoring.statistics(values, examples).sum(0))
    )
    assert task.scoring.constant_score(examples) == 0.0
    assert task.scoring.agreement(values, values, examples) == 1.0
    empty = text_array([[""], [""], ["la " * 40]])
    assert relative_losses(task, empty, examples).tolist() == [1, 1, 1], (
        "a hallucination counts no more than nothing"
    )
    selected = SpeechScoring("character_accuracy", task.kind.metrics)
    assert float(selected.score_of(task.scoring.statistics(values, examples).sum(0))) == pytest.approx(
        1 - scores["cer"]
    )
