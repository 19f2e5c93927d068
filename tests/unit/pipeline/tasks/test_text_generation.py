"""Kind text-generation: what is read, encoded, written along and scored, for families of language models."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.batch import pad_targets
from pipeline.config.generation import GenerationConfig
from pipeline.config.kinds import SEQUENCE_TO_SEQUENCE, TEXT_CLASSIFICATION, TEXT_GENERATION
from pipeline.data.splits import read_examples
from pipeline.errors import ConfigError, DataError, TeacherError
from pipeline.models import check_length, open_model, open_tokenizer
from pipeline.predictor import Predictor, check_model
from pipeline.soft import Texts
from pipeline.tasks import Task
from pipeline.tasks.forced import MOST_TRAINED, most_tokens, output_along, padded_on_the_left
from pipeline.tasks.generation import write_texts
from pipeline.tasks.heads import model_class
from pipeline.tasks.label_columns import Column
from pipeline.tasks.sequence_to_sequence import SequenceScoring
from pipeline.tasks.tensors import TensorBatch
from pipeline.tasks.text_faults import text_faults
from pipeline.tasks.text_generation import ROLES, ChatReading, PromptHead
from pipeline.tasks.variants import Variant, side_of
from pipeline.tasks.writing import writing_head
from students.layer_init import check_kinds, check_layers, truncate
from students.student import build_student
from tests.tiny_writers import DECODERS, LAYERS, SOURCES, TARGETS, prompt_task, tokenizer, writer

torch.set_num_threads(1)
DEVICE = torch.device("cpu")


@pytest.fixture(scope="module", params=DECODERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return writer(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return writer("gpt2", tmp_path_factory.mktemp("plain"))


def opened(folder: Path) -> tuple[Any, Any]:
    return open_model(model_class(TEXT_GENERATION), folder), open_tokenizer(folder)


# ---------------------------------------------------------------- reading


def read(prompts: list[Any], completions: list[Any]) -> Any:
    return read_examples(
        prompt_task(), "train", {"prompt": Column(prompts), "completion": Column(completions)}
    )


def test_prompts_and_completions_keep_their_spaces() -> None:
    examples = read(["the cat:", "a dog\n"], [" le chat", None])
    assert examples.inputs == {"source": ["the cat:", "a dog\n"], "target": [" le chat", ""]}
    assert prompt_task().reading.labelled(examples.labels).tolist() == [True, False]


@pytest.mark.parametrize(
    ("prompts", "completions", "cause"),
    [
        (["a", " "], ["x", "y"], "row 1 of train: prompt is empty"),
        (["a", "b"], ["x", ""], "row 1 of train: completion is empty"),
        (["a", 3], ["x", "y"], "row 1 of train: prompt is 3, not text"),
        (["a"], [["x"]], "row 0 of train: completion is"),
    ],
)
def test_errors_name_the_columns_of_the_kind(prompts: list[Any], completions: list[Any], cause: str) -> None:
    with pytest.raises(DataError, match=cause):
        read(prompts, completions)


def test_variants_of_prompts_keep_their_completions_where_asked() -> None:
    examples = read(["the cat", "a dog"], ["x", "y"])
    reading = prompt_task().reading
    one = Variant(1, (side_of("a dog"),), ({1: "cat"},))
    inputs, labels = reading.altered(examples.inputs, examples.labels, [one], keep_labels=True)
    assert inputs == {"source": ["a cat"], "target": ["y"]}
    assert labels.values.tolist() == [examples.labels.values[1]]
    inputs, labels = reading.altered(examples.inputs, examples.labels, [one], keep_labels=False)
    assert inputs == {"source": ["a cat"], "target": [""]}
    assert reading.labelled(labels).tolist() == [False]


# ---------------------------------------------------------------- encoding


def test_a_prompt_has_no_end_and_a_completion_has_one() -> None:
    words, head = tokenizer(), writing_head(prompt_task())
    encoded = head.encode(words, {"source": SOURCES, "target": TARGETS})
    plain = words(SOURCES, add_special_tokens=False)["input_ids"]
    ids, offsets = encoded.columns["input_ids"], encoded.offsets
    assert [ids[a:b].tolist() for a, b in pairwise(offsets)] == plain
    assert encoded.targets is not None
    rows = encoded.targets.take(np.arange(len(TARGETS)))
    ends = [own.tolist() for own in np.split(rows.values, rows.offsets[1:-1])]
    gold = words(TARGETS, add_special_tokens=False)["input_ids"]
    assert ends == [[*own, words.eos_token_id] for own in gold]
    assert encoded.units.tolist() == [len(own) + 1 for own in gold]


def test_a_long_prompt_loses_its_beginning_and_a_long_completion_its_end() -> None:
    words, head = tokenizer(), writing_head(prompt_task(max_length=5, target_length=4))
    long = " ".join(["the cat sees a dog"] * 3)
    encoded = head.encode(words, {"source": ["a dog", long], "target": ["un chien", long]})
    whole = words(long, add_special_tokens=False)["input_ids"]
    kept = encoded.columns["input_ids"][encoded.offsets[1] :].tolist()
    assert kept == whole[-len(kept) :]
    assert 0 < len(kept) <= 5
    assert encoded.truncated == 1
    assert encoded.targets is not None
    assert encoded.targets.truncated == 1
    assert encoded.targets.take(np.array([1])).values.tolist() == whole[:4]
    assert words.truncation_side == "right", "as before"


def test_a_tokenizer_without_an_end_is_refused() -> None:
    words = tokenizer()
    words.eos_token = None
    with pytest.raises(TeacherError, match="no token that ends a text"):
        writing_head(prompt_task()).encode(words, {"source": ["a dog"]})


# ---------------------------------------------------------------- along texts, and writing


@torch.no_grad()
def test_logits_along_a_text_are_those_of_the_text_after_its_prompt(folder: Path) -> None:
    model, words = opened(folder)
    head = writing_head(prompt_task())
    encoded = head.encode(words, {"source": SOURCES, "target": TARGETS})
    assert encoded.targets is not None
    rows = np.arange(len(SOURCES))
    batch = TensorBatch.of(encoded.pad(rows), DEVICE)
    target = torch.from_numpy(pad_targets(encoded.targets.take(rows)))
    logits = output_along(model, batch.inputs, target).logits
    assert logits.shape[:2] == target.shape
    for row, (prompt, text) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        first = words(prompt, add_special_tokens=False)["input_ids"]
        ids = [*first, *words(text, add_special_tokens=False)["input_ids"], words.eos_token_id]
        alone = model(input_ids=torch.tensor([ids])).logits[0, len(first) - 1 : -1]
        torch.testing.assert_close(logits[row, : len(alone)], alone, atol=2e-5, rtol=1e-4)


def test_gradients_along_texts_are_finite_where_prompts_are_padded(folder: Path) -> None:
    student = build_student(folder, [prompt_task()])
    encoded = writing_head(prompt_task()).encode(open_tokenizer(folder), {"source": SOURCES})
    batch = TensorBatch.of(encoded.pad(np.arange(len(SOURCES))), DEVICE)
    target = torch.full((len(SOURCES), 3), 5)
    student("translate", batch.inputs, target=target).logits.square().mean().backward()
    gradients = [one.grad for one in student.parameters() if one.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(one).all()) for one in gradients)


@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_written_does_not_depend_on_the_batch(folder: Path, beams: int) -> None:
    model, words = opened(folder)
    task = prompt_task(beams=beams)
    head = writing_head(task)
    encoded = head.encode(words, {"source": SOURCES})

    def written(tokens: int) -> Any:
        return write_texts(
            model, words, encoded, head.generation, target_length=12, tokens=tokens, device=DEVICE
        )

    together, alone = written(4096), written(1)
    assert together.values.tolist() == alone.values.tolist()
    np.testing.assert_allclose(together.scores, alone.scores, rtol=1e-4, atol=1e-4)
    for prompt, text in zip(SOURCES, together.values[:, 0], strict=True):
        ids = torch.tensor([words(prompt, add_special_tokens=False)["input_ids"]])
        own = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            num_beams=beams,
            do_sample=False,
        )
        assert words.decode(own[0, ids.shape[1] :], skip_special_tokens=True) == text


@torch.no_grad()
def test_scores_of_texts_are_their_log_probabilities(gpt2: Path) -> None:
    predictor = Predictor(gpt2, prompt_task())
    texts, truncated = predictor.predict({"source": SOURCES})
    model, words = opened(gpt2)
    assert truncated == 0
    assert isinstance(texts, Texts)
    encoded = words(SOURCES, add_special_tokens=False)["input_ids"]
    for row, prompt in enumerate(encoded):
        ids = torch.tensor([prompt])
        own = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )
        logs = model(input_ids=own).logits[0].log_softmax(-1)
        steps = range(len(prompt), own.shape[1])
        expected = sum(float(logs[step - 1, own[0, step]]) for step in steps)
        assert texts.scores[row, 0] == pytest.approx(expected, rel=1e-4)
        assert texts.lengths[row, 0] == len(steps)


def test_padding_moves_to_the_left() -> None:
    ids = torch.tensor([[5, 6, 0], [7, 0, 0], [8, 9, 4]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    moved = padded_on_the_left({"input_ids": ids, "attention_mask": mask})
    assert moved["input_ids"].tolist() == [[0, 5, 6], [0, 0, 7], [8, 9, 4]]
    assert moved["attention_mask"].tolist() == [[0, 1, 1], [0, 0, 1], [1, 1, 1]]


# ---------------------------------------------------------------- models


def test_a_student_has_some_of_the_layers_and_the_weights_of_the_others_are_gone(folder: Path) -> None:
    whole, cut = (build_student(folder, [prompt_task()], layers=layers) for layers in (None, 2))
    assert cut.model("translate").config.num_hidden_layers == 2
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in whole.parameters())
    model, words = opened(folder)
    every = truncate(model, LAYERS)
    ids = torch.tensor([words("the cat sees a dog", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(every(input_ids=ids).logits, model(input_ids=ids).logits)


def test_models_of_other_kinds_and_mixed_students_are_refused(gpt2: Path, tmp_path: Path) -> None:
    t5 = writer("t5", tmp_path)
    with pytest.raises(
        TeacherError, match="T5ForConditionalGeneration, text-generation needs a …ForCausalLM"
    ):
        check_kinds(t5, [TEXT_GENERATION], "students.small")
    with pytest.raises(
        ConfigError, match="learns tasks of text-generation alone, and no text-classification"
    ):
        check_kinds(gpt2, [TEXT_GENERATION, TEXT_CLASSIFICATION], "students.small")
    check_kinds(gpt2, [TEXT_CLASSIFICATION], "students.small")
    check_kinds(t5, [SEQUENCE_TO_SEQUENCE, TEXT_CLASSIFICATION], "students.small")
    config = open_model(model_class(TEXT_GENERATION), gpt2).config
    check_layers(config, 2, [TEXT_GENERATION])
    with pytest.raises(ConfigError, match="5 requested"):
        check_layers(config, 5, [TEXT_GENERATION])


def test_prompt_and_completion_need_positions_together(gpt2: Path) -> None:
    check_model(gpt2, prompt_task(max_length=52), "teachers.one")
    with pytest.raises(TeacherError, match="66 is more than the model's 64 positions"):
        check_model(gpt2, prompt_task(max_length=54), "teachers.one")
    check_length(gpt2, 64, "teachers.one")


def test_lengths_of_texts_are_no_fault_where_they_do_not_follow_their_prompts() -> None:
    texts = ["yes", "word " * 60, "", "no way no way no way no way no way no way"]
    faults = text_faults(texts, np.full(4, 280.0), None)
    assert [name for name, has in faults.items() if has.any()] == ["empty", "repeating the same few words"]


# ---------------------------------------------------------------- conversations

TEMPLATE = "{% for m in messages %}<{{ m.role }}> {{ m.content }}{% endfor %}{% if add_generation_prompt %}<a> {% endif %}"


def chat_task(prefix: str = "") -> Task:
    head = PromptHead("talk", 24, 12, prefix, GenerationConfig(), chat=True)
    reading = ChatReading("talk", (), ("source",), ROLES)
    return Task("talk", TEXT_GENERATION, reading, head, SequenceScoring("rouge_l", TEXT_GENERATION.metrics))


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_the_last_answer_of_a_conversation_is_learnt() -> None:
    turns = [message("user", "a dog"), message("assistant", "un chien"), message("user", "a cat")]
    rows = [[*turns, message("assistant", "un chat")], turns]
    examples = read_examples(chat_task(), "train", {"messages": Column(rows)})
    assert [json.loads(text) for text in examples.inputs["source"]] == [turns, turns]
    assert examples.inputs["target"] == ["un chat", ""]
    assert chat_task().reading.labelled(examples.labels).tolist() == [True, False]
    assert examples.keys[0] == examples.keys[1]
    assert chat_task().reading.plain(examples.inputs)[0][0] == "a dog\nun chien\na cat"


def test_conversations_as_sharegpt_has_them_are_the_same_ones() -> None:
    shared = [{"from": "human", "value": "a dog"}, {"from": "gpt", "value": "un chien"}]
    rows: list[Any] = [[message("user", "a dog"), message("assistant", "un chien")], shared]
    rows.append([{"role": None, "content": None, **one} for one in shared])  # as Arrow reads a mixed column
    examples = read_examples(chat_task(), "train", {"messages": Column(rows)})
    assert len(set(examples.inputs["source"])) == 1
    assert set(examples.inputs["target"]) == {"un chien"}


def test_a_chat_template_makes_the_prompt_and_a_prefix_is_the_system_s_message() -> None:
    words = tokenizer(ends=False)
    words.chat_template = TEMPLATE
    examples = read_examples(chat_task(), "train", {"messages": Column([[message("user", "a dog")]])})
    for prefix, text in (("", "<user> a dog<a> "), ("the cat", "<system> the cat<user> a dog<a> ")):
        encoded = writing_head(chat_task(prefix)).encode(words, {"source": examples.inputs["source"]})
        assert encoded.columns["input_ids"].tolist() == words(text)["input_ids"]
    assert writing_head(chat_task()).decoding != writing_head(prompt_task()).decoding
    assert "{'role': 'user'" in chat_task().head.snippet()


@pytest.mark.parametrize(
    "row",
    [
        [],
        "a dog",
        [{"role": "user"}],
        [message("assistant", "x")],
        [{"role": "user", "content": 3}],
        [{"from": "human", "value": "a dog"}, {"from": "tool", "value": "x"}],
        None,
    ],
)
def test_what_is_no_conversation_is_refused(row: Any) -> None:
    with pytest.raises(DataError, match=r"row 1 of train: messages is .*no conversation"):
        read_examples(chat_task(), "train", {"messages": Column([[message("user", "a dog")], row])})


def test_conversations_need_a_template_and_have_no_variants() -> None:
    examples = read_examples(chat_task(), "train", {"messages": Column([[message("user", "a dog")]])})
    with pytest.raises(TeacherError, match="no chat template for the messages of talk"):
        chat_task().head.encode(tokenizer(), {"source": examples.inputs["source"]})
    with pytest.raises(ConfigError, match=r"tasks\.talk\.augment: conversations have no variants"):
        chat_task().reading.sides(examples.inputs, examples.labels, 0)


def test_a_template_that_refuses_a_conversation_is_a_teacher_s_fault() -> None:
    words = tokenizer(ends=False)
    words.chat_template = "{{ raise_exception('System role not supported') }}"
    examples = read_examples(chat_task(), "train", {"messages": Column([[message("user", "a dog")]])})
    with pytest.raises(TeacherError, match="refuses a conversation of talk: System role not supported"):
        chat_task().head.encode(words, {"source": examples.inputs["source"]})


def test_texts_of_other_tasks_are_asked_by_a_user() -> None:
    inputs = chat_task().reading.from_plain(["a dog"])
    assert [json.loads(text) for text in inputs["source"]] == [[message("user", "a dog")]]
    read = read_examples(chat_task(), "transfer", {"source": Column(inputs["source"])})
    assert read.inputs == {**inputs, "target": [""]}


# ---------------------------------------------------------------- memory


def test_a_large_vocabulary_makes_forward_passes_along_texts_smaller() -> None:
    assert most_tokens(4096, 30_000, MOST_TRAINED) == 4096
    assert most_tokens(4096, 152_000, MOST_TRAINED) == 1315
    assert most_tokens(4096, 152_000) == 328
    assert most_tokens(4096, 10**9) == 1


def test_what_may_be_written_counts_for_the_size_of_a_batch(
    gpt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, words = opened(gpt2)
    head, sizes = writing_head(prompt_task()), list[int]()
    generate = model.generate

    def counted(**given: Any) -> Any:
        sizes.append(len(given["input_ids"]))
        return generate(**given)

    monkeypatch.setattr(model, "generate", counted)
    encoded = head.encode(words, {"source": SOURCES})
    longest = int(encoded.lengths.max())
    write_texts(
        model, words, encoded, head.generation, target_length=12, tokens=2 * (longest + 12), device=DEVICE
    )
    assert len(sizes) > 1
    assert max(sizes) <= 2 * (longest + 12) // (int(encoded.lengths.min()) + 12)
