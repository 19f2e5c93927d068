"""A training step with all rows of the token embeddings ÷ one with the rows that the texts use (`pipeline.training.used_rows`).

    python -m benchmarks.used_rows [--model bert-tiny] [--texts 5000] [--rounds 9]

One thread, batches of 32 movie sentences, fp32, AdamW, both on the same batches in turn. A round is 10 steps of each.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.common import ASSETS, demo_task, machine, paired, ratios, spread
from pipeline.batch import Encoded
from pipeline.config.recipe import Recipe
from pipeline.models import open_tokenizer
from pipeline.tasks import Task
from pipeline.tasks.tensors import TensorBatch
from pipeline.training.optimizer import make_optimizer
from pipeline.training.replica import Replica
from pipeline.training.step import Workers
from pipeline.training.used_rows import UsedRowsReplica, used_ids
from students.student import build_student

BATCH, STEPS = 32, 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="bert-tiny")
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = demo_task("movies", arguments.texts)
    folder, train = ASSETS / arguments.model, data.splits["train"]
    encoded = data.task.head.encode(open_tokenizer(folder), train.inputs)
    every, some = (build_student(folder, [data.task]) for _ in range(2))
    used = used_ids(some, [encoded])
    if used is None:
        parser.error(f"{arguments.model} trains its embeddings as a whole")
    both = (
        Runner(Replica(every, Workers()), data.task, encoded),
        Runner(UsedRowsReplica(some, Workers(), used), data.task, encoded),
    )
    whole, part = paired(arguments.rounds, *(one.seconds for one in both))
    size = every.encoder.config.vocab_size
    print(f"{machine()}; {arguments.model}, {len(train):,} texts use {len(used):,} of {size:,} rows")
    print(f"ms a step: all rows {_ms(whole)}, used rows {_ms(part)}; ratio {spread(ratios(whole, part))}")


def _ms(seconds: list[float]) -> str:
    return spread([1000 * one / STEPS for one in seconds])


class Runner:
    """Steps of one student, always on the same batches."""

    def __init__(self, replica: Replica, task: Task, encoded: Encoded) -> None:
        recipe = Recipe(
            epochs=1, batch_size=BATCH, learning_rate=1e-5, head_learning_rate=1e-5, early_stopping=None
        )
        self.replica, self.task, self.encoded = replica, task, encoded
        self.optimizer = make_optimizer(replica.trained, recipe)
        replica.trained.train()

    def seconds(self) -> float:
        """Seconds of a round."""
        draws = np.random.default_rng(0)
        started = time.perf_counter()
        for _ in range(STEPS):
            rows = draws.choice(len(self.encoded), BATCH, replace=False)
            batch = TensorBatch.of(self.encoded.pad(rows), torch.device("cpu"))
            self.optimizer.zero_grad(set_to_none=True)
            logits = self.replica.trained(self.task.name, batch.inputs).logits
            cross_entropy(logits, torch.zeros(BATCH, dtype=torch.int64)).backward()
            torch.nn.utils.clip_grad_norm_(self.replica.trained.parameters(), 1.0)
            self.optimizer.step()
            self.replica.stepped(self.optimizer)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
