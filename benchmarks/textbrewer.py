"""Distillation by Tutelage's core against TextBrewer's distillers: the same models, texts, epochs, batches and threads.

    pip install textbrewer==0.2.1.post1 tensorboard tqdm
    python -m benchmarks.textbrewer [--runs 5] [--examples 600] [--epochs 4]

Teachers are MiniLM-L6 with random heads, the student is BERT-tiny, short texts, 32 a batch, one thread. A measure is a whole job: teachers'
forward passes and all epochs, without validation. TextBrewer reads batches of random texts, padded to the longest, as its examples do, and computes in fp32
(its half precision needs apex and a GPU). Tutelage labels each text once, into a store on disk, in fp32 and in what it takes by default here.

- one teacher: `GeneralDistiller`, live teachers, and `BasicDistiller` with cached logits (`is_caching_logits`)
- two teachers of a task: `MultiTeacherDistiller`, live and cached
- two tasks: `MultiTaskDistiller`, which cannot cache

Goal: TextBrewer ÷ Tutelage ≥ 1 everywhere, ≥ 2 for two tasks.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from benchmarks.common import ASSETS, demo_task, machine, paired, ratios, spread
from pipeline.arithmetic import computes_in_bf16
from pipeline.config.recipe import StudentRecipe
from pipeline.data.splits import TaskData
from pipeline.losses import LossWeights
from pipeline.models import open_tokenizer
from pipeline.predictor import Predictor
from pipeline.soft import Dense, SoftTargets
from pipeline.training.feed import Feed, TaskSet
from pipeline.training.loop import Trainer
from pipeline.training.stage import LossPlan, one_stage
from pipeline.training.step import Aggregation
from students.export import save_task
from students.student import build_student
from teachers.store import Store

STUDENT, BASE, BATCH, RATE, TEMPERATURE = ASSETS / "bert-tiny", ASSETS / "minilm-l6", 32, 3e-4, 2.0
Precision = Literal["fp32", "bf16"]
LOSS = LossWeights({"hard": 0.3, "soft": 0.7}, TEMPERATURE)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--examples", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    native = computes_in_bf16(torch.device("cpu"))
    print(
        f"{machine()}; one thread; {arguments.examples} texts a task, {arguments.epochs} epochs, {arguments.runs} rounds",
        flush=True,
    )
    movies, tweets = demo_task("movies", arguments.examples), demo_task("tweets", arguments.examples)
    with tempfile.TemporaryDirectory() as scratch:
        first, second, third = (
            teacher(Path(scratch) / name, data, seed)
            for name, data, seed in (("a", movies, 0), ("b", movies, 1), ("c", tweets, 2))
        )
        cases: dict[str, tuple[Sequence[tuple[TaskData, Sequence[Path]]], Sequence[bool]]] = {
            "one teacher": ([(movies, [first])], (False, True)),
            "two teachers of a task": ([(movies, [first, second])], (False, True)),
            "two tasks": ([(movies, [first]), (tweets, [third])], (False,)),
        }
        for name, (tasks, cached) in cases.items():
            dtypes: list[Precision] = ["fp32", "bf16"] if native else ["fp32"]
            measures = [
                *(partial(ours, tasks, arguments.epochs, dtype, Path(scratch)) for dtype in dtypes),
                *(partial(theirs, tasks, arguments.epochs, one, Path(scratch)) for one in cached),
            ]
            seconds = paired(arguments.runs, *measures)
            for other, keeps in zip(seconds[len(dtypes) :], cached, strict=True):
                what = "cached logits" if keeps else "live teachers"
                shown = ", ".join(
                    f"Tutelage in {dtype} {spread(ratios(other, own))}"
                    for dtype, own in zip(dtypes, seconds, strict=False)
                )
                print(f"{name}: TextBrewer with {what} ÷ {shown}; seconds {spread(other)}", flush=True)


def teacher(folder: Path, data: TaskData, seed: int) -> Path:
    torch.manual_seed(seed)
    save_task(build_student(BASE, [data.task], seed=seed), data.task.name, open_tokenizer(BASE), folder)
    return folder


# ---------------------------------------------------------------- Tutelage


def ours(
    tasks: Sequence[tuple[TaskData, Sequence[Path]]],
    epochs: int,
    dtype: Precision,
    scratch: Path,
) -> float:
    """Seconds of a whole job: labelling into an empty store, then all epochs."""
    started, sets, tokenizer = time.perf_counter(), [], open_tokenizer(STUDENT)
    folder = Path(tempfile.mkdtemp(dir=scratch))
    store = Store(str(folder / "store"))
    for data, folders in tasks:
        train, columns = data.splits["train"], data.task.head.columns
        distinct = train.take(np.sort(np.unique(train.keys, return_index=True)[1]))
        for place, one in enumerate(folders):
            soft, _ = Predictor(one, data.task, dtype=dtype).predict(distinct.inputs)
            assert isinstance(soft, Dense), "logits"
            store.append(key(data, place), SoftTargets(distinct.keys, soft.half()))
        views = [store.view(key(data, place), train.keys, columns) for place in range(len(folders))]
        shares = torch.full((len(folders),), 1 / len(folders))
        sets.append(TaskSet.of(data, tokenizer, sources=views, aggregation=Aggregation("mean", shares)))
    config = StudentRecipe(
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=RATE,
        head_learning_rate=RATE,
        early_stopping=None,
        checkpoint_steps=10**9,
        precision=dtype,
        task_sampling=1.0,
    )
    student = build_student(STUDENT, [one.task for one in sets])
    feed = Feed(sets, BATCH, config.tokens_per_forward, sampling=config.task_sampling)
    trainer = Trainer(student, feed, config, one_stage(config, LossPlan(others=LOSS)), folder)
    for epoch in range(epochs):
        trainer.run_epoch(epoch)
    return time.perf_counter() - started


def key(data: TaskData, place: int) -> str:
    return f"{place}{data.task.name.encode().hex()}"


# ---------------------------------------------------------------- TextBrewer


def theirs(
    tasks: Sequence[tuple[TaskData, Sequence[Path]]], epochs: int, cached: bool, scratch: Path
) -> float:
    """Seconds of a whole job of the distiller that is made for it."""
    import textbrewer  # type: ignore[import-not-found]

    started = time.perf_counter()
    output = tempfile.mkdtemp(dir=scratch)
    losses = textbrewer.DistillationConfig(
        temperature=TEMPERATURE,
        hard_label_weight=LOSS.terms["hard"],
        kd_loss_weight=LOSS.terms["soft"],
        is_caching_logits=cached,
    )
    tokenizer = open_tokenizer(STUDENT)
    loaders = {data.task.name: loader(data, tokenizer) for data, _ in tasks}
    models = {data.task.name: [opened(one) for one in folders] for data, folders in tasks}
    steps = sum(len(one) for one in loaders.values()) * epochs
    settings = textbrewer.TrainingConfig(
        device="cpu",
        output_dir=output,
        log_dir=None,
        ckpt_frequency=1,
        ckpt_epoch_frequency=epochs,
        ckpt_steps=steps if len(tasks) > 1 else None,
    )
    if len(tasks) > 1:
        student: nn.Module = Several(tasks)
        distiller = textbrewer.MultiTaskDistiller(
            settings,
            losses,
            {name: one for name, (one,) in models.items()},
            student,
            dict.fromkeys(models, adaptor),
            dict.fromkeys(models, adaptor),
        )
        marked = {name: partial(with_task, name) for name in loaders}
        data: Any = loaders
        extra: Mapping[str, Any] = {"num_steps": steps, "batch_postprocessors": marked}
    else:
        ((name, teachers),) = models.items()
        student = fresh(tasks[0][0])
        data, extra = loaders[name], {"num_epochs": epochs}
        one_teacher = textbrewer.BasicDistiller if cached else textbrewer.GeneralDistiller
        made, given = (
            (one_teacher, teachers[0]) if len(teachers) == 1 else (textbrewer.MultiTeacherDistiller, teachers)
        )
        distiller = made(settings, losses, given, student, adaptor, adaptor)
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE)
    with distiller:
        distiller.train(optimizer, data, max_grad_norm=1.0, **extra)
    return time.perf_counter() - started


def loader(data: TaskData, tokenizer: Any) -> DataLoader[Any]:
    train = data.splits["train"]
    texts = tokenizer(list(train.inputs["text"]), truncation=True, max_length=data.task.head.max_length)
    rows = [
        {"input_ids": ids, "attention_mask": mask, "labels": int(label)}
        for ids, mask, label in zip(
            texts["input_ids"], texts["attention_mask"], train.labels.values, strict=True
        )
    ]
    collate: Callable[[Any], Any] = DataCollatorWithPadding(tokenizer)
    return DataLoader(rows, batch_size=BATCH, shuffle=True, collate_fn=lambda one: dict(collate(one)))  # type: ignore[arg-type]


def opened(folder: Path) -> nn.Module:
    model: nn.Module = AutoModelForSequenceClassification.from_pretrained(folder)
    return model.eval()


def fresh(data: TaskData) -> nn.Module:
    labels = len(data.task.reading.labels)
    model: nn.Module = AutoModelForSequenceClassification.from_pretrained(STUDENT, num_labels=labels)
    return model.train()


class Several(nn.Module):
    """One encoder with a head a task, as TextBrewer's multi-task example has it: the batch names its task."""

    def __init__(self, tasks: Sequence[tuple[TaskData, Sequence[Path]]]) -> None:
        super().__init__()
        self.models = nn.ModuleDict({data.task.name: fresh(data) for data, _ in tasks})
        models: list[Any] = list(self.models.values())
        for other in models[1:]:
            setattr(other, other.base_model_prefix, models[0].base_model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, task: str) -> Any:
        return self.models[task](input_ids=input_ids, attention_mask=attention_mask, labels=labels)


def with_task(name: str, batch: dict[str, Any]) -> dict[str, Any]:
    """The teacher's batch, and the student's, which names the task."""
    return {"teacher": batch, "student": {**batch, "task": name}}


def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
    return {"logits": outputs.logits, "losses": outputs.loss}


if __name__ == "__main__":
    main()
