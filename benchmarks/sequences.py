"""Teachers that write: decoding, token targets, consensus, epochs and students' decoding, each as a ratio.

    python -m benchmarks.sequences [--of translation] [--runs 3] [--sources 128] [--parts decoding tokens consensus epoch student]

Of `translation` FLAN-T5-small writes French for sentences of a user interface (assets t5-small, interface-fr), of `language` SmolLM2-135M lists the
names in a sentence (smollm2, names), of `speech` Whisper-tiny.en writes recordings down (whisper-tiny-en, speech; decoding alone). All are untrained
for that: how long it takes does not depend on how good it is.

- decoding: texts a second of the Ray pool ÷ a bare loop of `generate` over batches sorted by length in this process with the same
  threads (goal ≥ 0.90), ÷ a naive loop of one text at a time (goal ≥ 4). Of speech both read files and compute features each time, which
  the pool keeps on disk.
- tokens: bytes a position of each form of token targets in the store; how near the gradient of the soft loss on a student's logits is to
  that of the whole distribution: the cosine, and the ratio of their lengths, over all positions (both 1 for the whole one).
- consensus: seconds per 1,000 sources of the consensus of K teachers × m candidates.
- epoch: CPU seconds of an epoch with token targets ÷ supervised (goal ≤ 1.10), with teachers' texts ÷ supervised (goal ≤ 1.02).
- student: sources a second of a student of a teacher's layers ÷ its teacher (4 + 2 of 8 + 8, 6 of 30), in the same batches, greedy and with 4 beams.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import ASSETS, machine, paired, ratios, spread
from benchmarks.epoch import cpu_seconds
from pipeline.cluster import connected
from pipeline.config.data import DataConfig
from pipeline.config.fields import SPLITS
from pipeline.config.generation import GenerationConfig, TokenTargetsConfig
from pipeline.config.load import parse_config
from pipeline.config.recipe import StudentRecipe
from pipeline.config.schema import ServingConfig, StackLayersConfig, TaskConfig
from pipeline.data.splits import TaskData, load_task
from pipeline.events import event_ids, sparse_rows, student_events, teacher_events
from pipeline.losses import LossWeights, soft_kl
from pipeline.models import open_tokenizer, vocabulary
from pipeline.predictor import Predictor
from pipeline.soft import SoftTargets, Sparse
from pipeline.tasks.consensus import consensus_texts
from pipeline.tasks.forced import decoder_inputs
from pipeline.tasks.generation import write_texts
from pipeline.tasks.listening import open_extractor
from pipeline.tasks.pairs import pairs
from pipeline.tasks.recording import samples, seconds
from pipeline.tasks.writing import writing_head
from pipeline.text_arrays import text_array
from pipeline.training.feed import Feed, TaskSet
from pipeline.training.loop import Trainer
from pipeline.training.stage import LossPlan, one_stage
from pipeline.training.step import Aggregation
from pipeline.training.written import WrittenTexts
from pipeline.urls import cache_base
from students.student import MultiTaskStudent, build_student
from teachers.pool import AUDIO_CHUNK, TeacherPool, length_sorted_chunks
from teachers.spec import TeacherSpec
from teachers.store import Store

LENGTH, CHUNK = 48, 32
FORMS = [
    *(TokenTargetsConfig(form="top", ids=ids) for ids in (1, 4, 8, 16, 32)),
    *(TokenTargetsConfig(form="sampled", ids=ids) for ids in (8, 12, 32, 64)),
]


@dataclass(frozen=True)
class Case:
    """Examples of a task whose models write. model: a teacher's folder · layers: those of it that a student has · read: a predictor, some sources →
    what `generate` takes, as transformers' documentation has it."""

    data: TaskData
    model: Path
    layers: int | StackLayersConfig
    read: Callable[[Predictor, Sequence[str]], Mapping[str, Tensor]]

    def student(self, dropout: float | None = None) -> MultiTaskStudent:
        return build_student(self.model, [self.data.task], layers=self.layers, dropout=dropout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--of", choices=list(CASES), default="translation")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sources", type=int, default=128)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS))
    arguments = parser.parse_args()
    print(
        f"{machine()}; {arguments.of}, {arguments.sources} sources, {arguments.runs} runs, median (range)",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch  # features that an earlier run kept would be read
        case = CASES[arguments.of](arguments.sources)
        for part in arguments.parts or (["decoding"] if case.data.task.kind.audio else list(PARTS)):
            torch.set_num_threads((os.cpu_count() or 1) if part == "decoding" else 1)
            PARTS[part](case, arguments.runs)


def examples(
    kind: Any, name: str, suffix: str, count: int, max_length: int | None = None, **task: Any
) -> TaskData:
    """A task of the demo with that many examples in train. max_length: of a source of text."""
    files: Any = {split: str(ASSETS / name / f"{split}.{suffix}") for split in SPLITS}
    limit: Any = {"train": count, "validation": 32, "test": 32}
    read: Any = {"path": {"jsonl": "json"}.get(suffix, suffix), "data_files": files, "limit": limit}
    text: Any = {} if max_length is None else {"max_length": max_length}
    data = DataConfig(**read, **text, target_length=LENGTH)
    return load_task(name, TaskConfig(kind=kind, data=data, **task))


def translation(count: int) -> Case:
    given: Any = {"max_length": LENGTH, "prefix": "translate English to French: "}
    data = examples("sequence-to-sequence", "interface-fr", "jsonl", count, **given)
    return Case(data, ASSETS / "t5-small", StackLayersConfig(encoder=4, decoder=2), padded)


def language(count: int) -> Case:
    data = examples("text-generation", "names", "jsonl", count, max_length=LENGTH)
    return Case(data, ASSETS / "smollm2", 6, padded)


def speech(count: int) -> Case:
    data = examples("speech-recognition", "speech", "parquet", count)
    return Case(data, ASSETS / "whisper-tiny-en", StackLayersConfig(decoder=1), features)


def padded(predictor: Predictor, sources: Sequence[str]) -> Mapping[str, Tensor]:
    words = predictor.tokenizer
    texts = [writing_head(predictor.task).prefix + text for text in sources]
    words.padding_side = "right" if predictor.model.config.is_encoder_decoder else "left"
    batch = words(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def features(predictor: Predictor, sources: Sequence[str]) -> Mapping[str, Tensor]:
    extractor = open_extractor(ASSETS / "whisper-tiny-en")
    waves = [samples(one, extractor.sampling_rate) for one in sources]
    batch = extractor(waves, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    return {"input_features": batch["input_features"]}


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def decoding(case: Case, runs: int) -> None:
    task = case.data.task
    sources = {"source": list(case.data.splits["train"].inputs["source"])}
    predictor, threads = Predictor(case.model, task), os.cpu_count() or 1
    audio, rows = task.kind.audio, np.arange(len(sources["source"]))
    order = length_sorted_chunks(sources, rows, AUDIO_CHUNK if audio else CHUNK, audio=audio)
    chunks = [{"source": [sources["source"][i] for i in rows]} for rows in order]
    serving = ServingConfig(replicas=1, cpus=threads)
    spec = TeacherSpec("t", str(case.model), None, task=task, serving=serving, key="aa")
    config = {
        "name": "b",
        "tasks": {"t": {"kind": "text-classification", "data": {"path": "csv"}}},
        "teachers": {"t": {"task": "t", "model": "m"}},
        "students": {"s": {"init_from": "t"}},
    }
    with connected(parse_config(config)):
        pool = TeacherPool(spec, 1)
        pool.open(1)

        def labelled() -> None:
            shutil.rmtree(cache_base() / "features", ignore_errors=True)
            list(pool.run(chunks))

        pooled, bare, naive = paired(
            runs,
            partial(timed, labelled),
            partial(timed, lambda: bare_loop(case, predictor, chunks)),
            partial(
                timed, lambda: bare_loop(case, predictor, [{"source": [one]} for one in sources["source"]])
            ),
        )
        pool.close()
    print(f"decoding: pool ÷ bare {spread(ratios(bare, pooled))}, ÷ naive {spread(ratios(naive, pooled))}")
    print(f"  seconds: pool {spread(pooled)}, bare {spread(bare)}, naive {spread(naive)}", flush=True)
    if audio:
        heard = float(seconds(sources["source"]).sum())
        print(f"  {heard:.0f} seconds of audio", flush=True)


@torch.inference_mode()
def bare_loop(case: Case, predictor: Predictor, chunks: Sequence[dict[str, list[str]]]) -> None:
    """`generate` and no more."""
    for chunk in chunks:
        ids = predictor.model.generate(**case.read(predictor, chunk["source"]), max_new_tokens=LENGTH)
        predictor.tokenizer.batch_decode(ids, skip_special_tokens=True)


def tokens(case: Case, runs: int) -> None:
    data = case.data
    train = data.splits["train"]
    predictor = Predictor(case.model, data.task)
    student = case.student(dropout=0.0)
    teacher, labels = logits_along(predictor, predictor.model, train.inputs)
    own, _ = logits_along(predictor, student.model(data.task.name), train.inputs)
    size = len(vocabulary(predictor.tokenizer))
    teacher, own = teacher[:, :size], own[:, :size]
    whole = gradient(own, lambda logits: soft_kl(logits, teacher.softmax(-1), 1.0))
    every = pairs(data.task, train.inputs["source"], train.inputs["target"])
    first = np.sort(np.unique(every.keys, return_index=True)[1])
    for form in FORMS:
        ids, logs, rest = (torch.from_numpy(one) for one in sparse_rows(teacher, form, labels, seed=0))
        events = event_ids(ids.unsqueeze(0), labels)
        target = teacher_events(ids.unsqueeze(0), logs.unsqueeze(0), rest.unsqueeze(0), events, size)[0].exp()
        got = gradient(own, partial(events_kl, events=events, target=target))
        cosine = float((got * whole).sum() / got.norm() / whole.norm())
        with tempfile.TemporaryDirectory() as scratch:
            store = Store(scratch)
            taken = every.take(first)
            soft, *_ = predictor.force(taken.inputs, form)
            store.append("aa", SoftTargets(taken.keys, soft))
            bytes_ = store.size("aa") / len(soft.numbers)
        print(
            f"tokens: {form.form} {form.ids}: {bytes_:.0f} bytes a position, gradient's cosine {cosine:.4f},"
            f" length {float(got.norm() / whole.norm()):.3f}",
            flush=True,
        )
    print(
        f"  {len(labels)} positions, {size} tokens in the vocabulary: whole, in half precision, {2 * size} bytes"
    )


def events_kl(logits: Tensor, events: Tensor, target: Tensor) -> Tensor:
    return soft_kl(student_events(logits, events), target, 1.0)


def gradient(logits: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    own = logits.clone().requires_grad_()
    (result,) = torch.autograd.grad(loss(own).sum(), own)
    return result


@torch.no_grad()
def logits_along(predictor: Predictor, model: Any, inputs: Any) -> tuple[Tensor, Tensor]:
    """(P, V) logits along the references, and (P,) their ids."""
    words, parts, labels = predictor.tokenizer, [], []
    for source, target in zip(inputs["source"], inputs["target"], strict=True):
        batch = padded(predictor, [source])
        ids = words(target, truncation=True, max_length=LENGTH, return_tensors="pt")["input_ids"]
        if model.config.is_encoder_decoder:
            output = model(**batch, decoder_input_ids=decoder_inputs(model, ids))
        else:
            output = model(input_ids=torch.cat((batch["input_ids"], ids[:, :-1]), 1))
        parts.append(output.logits[0, -ids.shape[1] :].float())
        labels.append(ids[0])
    return torch.cat(parts), torch.cat(labels)


def consensus(case: Case, runs: int) -> None:
    """Candidates are references of which some words are left out: all different, as long as real ones."""
    references, rng = case.data.splits["train"].inputs["target"], np.random.default_rng(0)

    def shortened(text: str) -> str:
        words = text.split()
        return " ".join(word for word in words if rng.random() > 0.2) or text

    for teachers, candidates in ((2, 1), (2, 4), (4, 4), (4, 8)):
        texts = [
            text_array([[shortened(text) for _ in range(candidates)] for text in references])
            for _ in range(teachers)
        ]
        call = partial(consensus_texts, texts, [1 / teachers] * teachers)
        seconds = [timed(call) * 1000 / len(references) for _ in range(runs)]
        print(f"consensus of {teachers} × {candidates}: {spread(seconds)} s per 1,000 sources", flush=True)


def epoch(case: Case, runs: int) -> None:
    data, words = case.data, open_tokenizer(case.model)
    train = data.splits["train"]
    every = pairs(data.task, train.inputs["source"], train.inputs["target"])
    every = every.take(np.sort(np.unique(every.keys, return_index=True)[1]))
    soft, *_ = Predictor(case.model, data.task).force(every.inputs, TokenTargetsConfig())
    assert isinstance(soft, Sparse), "along texts"
    texts = WrittenTexts((np.asarray(text_array([[one] for one in train.inputs["target"]])[:, 0]),), (0.5,))
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(scratch)
        for name in ("aa", "bb"):
            store.append(name, SoftTargets(every.keys, soft))
        views = [store.view(name, every.keys, vocabulary(words), soft.ids.counts) for name in ("aa", "bb")]
        aggregation = Aggregation("mean", torch.tensor([0.5, 0.5]))
        plain = TaskSet.of(data, words)
        written = TaskSet.of(data, words, written=texts)
        forced = TaskSet.of(data, words, written=WrittenTexts(), keyed=True)
        forced = TaskSet(**{**vars(forced), "sources": views, "aggregation": aggregation})
        both = LossPlan(others=LossWeights({"hard": 0.5, "soft": 0.5}, 1.0))
        trainers = [
            trainer(case.student(), sets, plan, Path(scratch) / str(number))
            for number, (sets, plan) in enumerate(
                ((plain, LossPlan()), (written, LossPlan()), (forced, both))
            )
        ]
        supervised, with_texts, with_tokens = paired(runs, *(partial(cpu_seconds, one) for one in trainers))
    print(
        f"epoch: texts ÷ supervised {spread(ratios(with_texts, supervised))}, token targets of two teachers ÷ supervised"
        f" {spread(ratios(with_tokens, supervised))}; CPU seconds supervised {spread(supervised)}",
        flush=True,
    )


def trainer(student: MultiTaskStudent, sets: TaskSet, plan: LossPlan, folder: Path) -> Trainer:
    config = StudentRecipe(
        epochs=1000, learning_rate=1e-4, head_learning_rate=1e-4, early_stopping=None, checkpoint_steps=10**9
    )
    folder.mkdir()
    feed = Feed([sets], config.batch_size, config.tokens_per_forward)
    return Trainer(student, feed, config, one_stage(config, plan), folder)


def student(case: Case, runs: int) -> None:
    data = case.data
    predictor = Predictor(case.model, data.task)
    small = case.student().eval().model(data.task.name)
    head = writing_head(data.task)
    encoded = head.encode(predictor.tokenizer, {"source": data.splits["train"].inputs["source"]})
    for beams in (1, 4):
        settings = GenerationConfig(beams=beams)

        def write(model: Any, own: GenerationConfig = settings) -> object:
            # as many steps for both: an untrained student does not know where to stop
            model.generation_config.min_new_tokens = LENGTH
            return write_texts(
                model,
                predictor.tokenizer,
                encoded,
                own,
                target_length=LENGTH,
                tokens=4096,
                device=torch.device("cpu"),
            )

        ours, theirs = paired(
            runs, partial(timed, partial(write, small)), partial(timed, partial(write, predictor.model))
        )
        print(
            f"student, {beams} beams: sources a second ÷ its teacher's {spread(ratios(theirs, ours))}",
            flush=True,
        )


CASES: dict[str, Callable[[int], Case]] = {
    "translation": translation,
    "language": language,
    "speech": speech,
}
PARTS: dict[str, Callable[[Case, int], None]] = {
    "decoding": decoding,
    "tokens": tokens,
    "consensus": consensus,
    "epoch": epoch,
    "student": student,
}

if __name__ == "__main__":
    main()
