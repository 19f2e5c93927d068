"""Labelling through the Ray pool, against a bare tuned loop in this process, a naive padded loop, and Ray Data.

    python -m benchmarks.labelling [--runs 5] [--examples 2000] [--ray-data]

Goal: pool ÷ bare loop ≥ 0.90, better 0.95, in throughput with the same threads; pool ÷ naive ≥ 3. Replicas start before the
measurement; their start-up is printed separately. Pool and bare loop compute in bf16 where the processor does, as teachers do by default. The naive loop
pads every text to max_length, 32 a batch, in fp32.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import ASSETS, demo_task, machine, paired, ratios, spread
from pipeline.arithmetic import Dtype, computes_in_bf16
from pipeline.cluster import connected
from pipeline.config.load import parse_config
from pipeline.config.schema import ServingConfig
from pipeline.data.splits import TaskData
from pipeline.models import open_tokenizer
from pipeline.predictor import Predictor
from students.export import save_task
from students.student import build_student
from teachers.pool import CHUNK, Chunk, TeacherPool, length_sorted_chunks
from teachers.spec import TeacherSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--ray-data", action="store_true", help="Time Ray Data's actor pool as well.")
    arguments = parser.parse_args()
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    data = demo_task("movies", arguments.examples)
    print(
        f"{machine()}; {arguments.examples} movie sentences, MiniLM-L6, {threads} threads, {arguments.runs} runs"
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "teacher"
        tokenizer = open_tokenizer(ASSETS / "minilm-l6")
        save_task(build_student(ASSETS / "minilm-l6", [data.task]), "movies", tokenizer, folder)
        config = parse_config(
            {
                "name": "b",
                "tasks": {"movies": {"kind": "text-classification", "data": {"path": "csv"}}},
                "teachers": {"t": {"task": "movies", "model": str(folder)}},
                "students": {"s": {"init_from": "t"}},
            }
        )
        with connected(config):
            compare(folder, data, threads, arguments)


def compare(folder: Path, data: TaskData, threads: int, arguments: argparse.Namespace) -> None:
    examples = data.splits["train"]
    texts = {"text": list(examples.inputs["text"])}
    chunks = [
        {"text": [texts["text"][i] for i in rows]}
        for rows in length_sorted_chunks(texts, np.arange(len(examples)), CHUNK)
    ]
    dtype: Dtype = "bf16" if computes_in_bf16(torch.device("cpu")) else "fp32"
    predictor, exact = (Predictor(folder, data.task, dtype=one) for one in (dtype, "fp32"))
    print(f"pool and bare loop in {dtype}, naive loop in fp32")
    for replicas in (1, threads):
        serving = ServingConfig(replicas=replicas, cpus=threads / replicas)
        spec = TeacherSpec(
            name="t",
            model=str(folder),
            revision=None,
            task=data.task,
            serving=serving,
            key="aa",
            dtype=dtype,
        )
        pool = TeacherPool(spec, replicas)
        started = time.perf_counter()
        pool.open(replicas)
        pooled_seconds(pool, chunks)
        print(
            f"pool of {replicas} × {threads // replicas} threads: start-up and a first pass {time.perf_counter() - started:.1f} s"
        )
        measures = (
            partial(pooled_seconds, pool, chunks),
            partial(bare, predictor, texts),
            partial(naive, exact, texts["text"]),
        )
        pooled, alone, padded = paired(arguments.runs, *measures)
        pool.close()
        print(
            f"  throughput, pool ÷ bare loop {spread(ratios(alone, pooled))}, pool ÷ naive {spread(ratios(padded, pooled))}"
        )
        print(f"  seconds: pool {spread(pooled)}, bare {spread(alone)}, naive {spread(padded)}")
    if arguments.ray_data:
        print(
            f"Ray Data, {threads} actors × 1 thread: {spread([ray_data(folder, data, texts, threads, dtype) for _ in range(2)])} s, start-up included"
        )


def pooled_seconds(pool: TeacherPool, chunks: Sequence[Chunk]) -> float:
    started = time.perf_counter()
    for _ in pool.run(chunks):
        pass
    return time.perf_counter() - started


def bare(predictor: Predictor, texts: dict[str, list[str]]) -> float:
    started = time.perf_counter()
    predictor.predict(texts)
    return time.perf_counter() - started


@torch.inference_mode()
def naive(predictor: Predictor, texts: list[str]) -> float:
    started = time.perf_counter()
    for i in range(0, len(texts), 32):
        batch = predictor.tokenizer(
            texts[i : i + 32], padding="max_length", truncation=True, max_length=64, return_tensors="pt"
        )
        predictor.model(**batch)
    return time.perf_counter() - started


def ray_data(folder: Path, data: TaskData, texts: dict[str, list[str]], actors: int, dtype: Dtype) -> float:
    import ray.data

    class Label:
        def __init__(self) -> None:
            torch.set_num_threads(1)
            self.teacher = Predictor(folder, data.task, dtype=dtype)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return {"logits": self.teacher.predict({"text": [str(text) for text in batch["text"]]})[0].values}

    ray.data.DataContext.get_current().enable_progress_bars = False
    started = time.perf_counter()
    table = ray.data.from_items([{"text": text} for text in sorted(texts["text"], key=len, reverse=True)])
    labelled = table.map_batches(
        Label, batch_size=CHUNK, num_cpus=1, compute=ray.data.ActorPoolStrategy(size=actors)
    )
    labelled.materialize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
