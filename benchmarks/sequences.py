"""Teachers that write: decoding, token targets, consensus, epochs and students' decoding, each as a ratio.

    python -m benchmarks.sequences [--runs 3] [--sources 128] [--parts decoding tokens consensus epoch student]

Needs the assets t5-small and interface-fr. FLAN-T5-small writes French for sentences of a user interface, untrained for them: how
long that takes does not depend on how good it is.

- decoding: texts a second of the Ray pool ÷ a bare loop of `generate` over batches sorted by length in this process with the same
  threads (goal ≥ 0.90), ÷ a naive loop of one text at a time (goal ≥ 4).
- tokens: bytes a position of each form of token targets in the store; how near the gradient of the soft loss on a student's logits is to
  that of the whole distribution: the cosine, and the ratio of their lengths, over all positions (both 1 for the whole one).
- consensus: seconds per 1,000 sources of the consensus of K teachers × m candidates.
- epoch: CPU seconds of an epoch with token targets ÷ supervised (goal ≤ 1.10), with teachers' texts ÷ supervised (goal ≤ 1.02).
- student: sources a second of a student of 4 + 2 layers ÷ its teacher of 8 + 8, in the same batches, greedy and with 4 beams.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
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
from pipeline.tasks.pairs import pairs
from pipeline.tasks.writing import writing_head
from pipeline.text_arrays import text_array
from pipeline.training.feed import Feed, TaskSet
from pipeline.training.loop import Trainer
from pipeline.training.stage import LossPlan, one_stage
from pipeline.training.step import Aggregation
from pipeline.training.written import WrittenTexts
from students.student import build_student
from teachers.pool import TeacherPool, length_sorted_chunks
from teachers.spec import TeacherSpec
from teachers.store import Store

TEACHER, LENGTH, CHUNK = ASSETS / "t5-small", 48, 32
FORMS = [
    *(TokenTargetsConfig(form="top", ids=ids) for ids in (1, 4, 8, 16, 32)),
    *(TokenTargetsConfig(form="sampled", ids=ids) for ids in (8, 12, 32, 64)),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sources", type=int, default=128)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    arguments = parser.parse_args()
    print(f"{machine()}; {arguments.sources} sources, {arguments.runs} runs, median (range)", flush=True)
    data = translations(arguments.sources)
    for part in arguments.parts:
        torch.set_num_threads((os.cpu_count() or 1) if part == "decoding" else 1)
        PARTS[part](data, arguments.runs)


def translations(count: int, **generation: Any) -> TaskData:
    """Sentences of a user interface with their translations."""
    files: Any = {
        split: str(ASSETS / "interface-fr" / f"{split}.jsonl") for split in ("train", "validation", "test")
    }
    limit: Any = {"train": count, "validation": 32, "test": 32}
    config = TaskConfig(
        kind="sequence-to-sequence",
        prefix="translate English to French: ",
        generation=GenerationConfig(**generation),
        data=DataConfig(path="json", data_files=files, max_length=LENGTH, target_length=LENGTH, limit=limit),
    )
    return load_task("to-french", config)


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def decoding(data: TaskData, runs: int) -> None:
    sources = {"source": list(data.splits["train"].inputs["source"])}
    predictor, threads = Predictor(TEACHER, data.task), os.cpu_count() or 1
    order = length_sorted_chunks(sources, np.arange(len(sources["source"])), CHUNK)
    chunks = [{"source": [sources["source"][i] for i in rows]} for rows in order]
    serving = ServingConfig(replicas=1, cpus=threads)
    spec = TeacherSpec("t", str(TEACHER), None, task=data.task, serving=serving, key="aa")
    config = {
        "name": "b",
        "tasks": {"t": {"kind": "text-classification", "data": {"path": "csv"}}},
        "teachers": {"t": {"task": "t", "model": "m"}},
        "students": {"s": {"init_from": "t"}},
    }
    with connected(parse_config(config)):
        pool = TeacherPool(spec, 1)
        pool.open(1)
        pooled, bare, naive = paired(
            runs,
            partial(timed, lambda: list(pool.run(chunks))),
            partial(timed, lambda: bare_loop(predictor, chunks)),
            partial(timed, lambda: bare_loop(predictor, [{"source": [one]} for one in sources["source"]])),
        )
        pool.close()
    print(f"decoding: pool ÷ bare {spread(ratios(bare, pooled))}, ÷ naive {spread(ratios(naive, pooled))}")
    print(f"  seconds: pool {spread(pooled)}, bare {spread(bare)}, naive {spread(naive)}", flush=True)


@torch.inference_mode()
def bare_loop(predictor: Predictor, chunks: Sequence[dict[str, list[str]]]) -> None:
    """`generate` and no more, on the texts as transformers' documentation has it."""
    head = writing_head(predictor.task)
    for chunk in chunks:
        texts = [head.prefix + text for text in chunk["source"]]
        batch = predictor.tokenizer(
            texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
        )
        ids = predictor.model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=LENGTH
        )
        predictor.tokenizer.batch_decode(ids, skip_special_tokens=True)


def tokens(data: TaskData, runs: int) -> None:
    train = data.splits["train"]
    predictor = Predictor(TEACHER, data.task)
    student = build_student(TEACHER, [data.task], layers=StackLayersConfig(encoder=4, decoder=2), dropout=0.0)
    teacher, labels = logits_along(predictor, predictor.model, train.inputs)
    own, _ = logits_along(predictor, student.model("to-french"), train.inputs)
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
    words, head = predictor.tokenizer, writing_head(predictor.task)
    parts, labels = [], []
    for source, target in zip(inputs["source"], inputs["target"], strict=True):
        batch = words([head.prefix + source], truncation=True, max_length=LENGTH, return_tensors="pt")
        ids = words(target, truncation=True, max_length=LENGTH, return_tensors="pt")["input_ids"]
        output = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=decoder_inputs(model, ids),
        )
        parts.append(output.logits[0].float())
        labels.append(ids[0])
    return torch.cat(parts), torch.cat(labels)


def consensus(data: TaskData, runs: int) -> None:
    """Candidates are references of which some words are left out: all different, as long as real ones."""
    references, rng = data.splits["train"].inputs["target"], np.random.default_rng(0)

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


def epoch(data: TaskData, runs: int) -> None:
    train, words = data.splits["train"], open_tokenizer(TEACHER)
    every = pairs(data.task, train.inputs["source"], train.inputs["target"])
    every = every.take(np.sort(np.unique(every.keys, return_index=True)[1]))
    soft, *_ = Predictor(TEACHER, data.task).force(every.inputs, TokenTargetsConfig())
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
            trainer(sets, plan, Path(scratch) / str(number))
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


def trainer(sets: TaskSet, plan: LossPlan, folder: Path) -> Trainer:
    student = build_student(TEACHER, [sets.task], layers=StackLayersConfig(encoder=4, decoder=2))
    config = StudentRecipe(
        epochs=1000, learning_rate=1e-4, head_learning_rate=1e-4, early_stopping=None, checkpoint_steps=10**9
    )
    folder.mkdir()
    feed = Feed([sets], config.batch_size, config.tokens_per_forward)
    return Trainer(student, feed, config, one_stage(config, plan), folder)


def student(data: TaskData, runs: int) -> None:
    predictor = Predictor(TEACHER, data.task)
    layers = StackLayersConfig(encoder=4, decoder=2)
    small = build_student(TEACHER, [data.task], layers=layers).eval().model("to-french")
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


PARTS: dict[str, Callable[[TaskData, int], None]] = {
    "decoding": decoding,
    "tokens": tokens,
    "consensus": consensus,
    "epoch": epoch,
    "student": student,
}

if __name__ == "__main__":
    main()
