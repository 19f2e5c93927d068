"""All checks before Ray starts: data, models, label spaces, hardware, teachers that are already fine-tuned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.arithmetic import Dtype, computes_in_bf16
from pipeline.augment.back_translation import check_translators
from pipeline.augment.fill_mask import check_fill_mask
from pipeline.augment.make import Progress, expected_variants, with_variants
from pipeline.augment.wordnet import wordnet_files, wordnet_fingerprint
from pipeline.cluster import check_gpus
from pipeline.config.adapters import LoraConfig
from pipeline.config.recipe import T5_RATE_FACTOR, Facts, ModelFacts, TaskFacts, teacher_recipe
from pipeline.config.resolved import (
    Resolved,
    StudentStart,
    absolute_model,
    resolve_config,
    student_start,
    student_train,
    task_aggregation,
)
from pipeline.config.schema import RunConfig, ServingConfig, needs_labels, strategies
from pipeline.curve import Curve
from pipeline.data.splits import TaskData
from pipeline.data.transfer import load_tasks
from pipeline.errors import ConfigError, Errors, TeacherError, one_of
from pipeline.models import (
    check_length,
    fingerprint,
    hidden_layer,
    open_config,
    open_tokenizer,
    resolve,
    width,
)
from pipeline.predictor import check_model
from pipeline.shared_runs import behind, model_source, pull_teacher
from pipeline.tasks import Task
from pipeline.tasks.ctc import FrameHead, of_model
from pipeline.tasks.heads import is_ctc
from pipeline.training.fine_tune import TEACHER, Request, is_finished, read_curve, teacher_folder
from pipeline.training.plan import start_folder
from pipeline.writing_checks import check_smoothing, check_spelling, check_vocabularies, teacher_task
from students.adapters import check_adapters
from students.layer_init import check_kinds, check_layers
from teachers.spec import HiddenTargets, TeacherSpec, TokenTargets
from teachers.store import Store
from teachers.store_key import hidden_key, store_key, token_key


@dataclass(frozen=True)
class Inputs:
    """A run's data, where its models are, and its settings.

    bases: the folder each teacher is made of, or is · teachers: the folder each one is served from; that of a
    teacher still to be fine-tuned does not exist yet · starts: the folder each student starts from · facts: what
    settings are derived from · resolved: the settings.
    """

    data: Mapping[str, TaskData]
    bases: Mapping[str, Path]
    teachers: Mapping[str, Path]
    starts: Mapping[str, Path]
    facts: Facts
    resolved: Resolved

    def fingerprints(self, config: RunConfig) -> dict[str, str]:
        """Hashes of the data and models, by config key: a run may be resumed only while none of them has changed."""
        contents = {f"tasks.{name}.data": data.fingerprint() for name, data in self.data.items()}
        contents |= {f"teachers.{name}.model": fingerprint(folder) for name, folder in self.bases.items()}
        for name, student in config.students.items():
            if student.model is not None:
                contents[f"students.{name}.model"] = fingerprint(
                    resolve(student.model, student.revision, name)
                )
        for name, task in config.tasks.items():
            where, augment = f"tasks.{name}.augment", task.augment
            if augment is not None and augment.masked is not None:
                folder = resolve(absolute_model(augment.masked.model), augment.masked.revision, where)
                contents[f"{where}.masked.model"] = fingerprint(folder)
            if augment is not None and (back := augment.back_translation) is not None:
                for key in ("there", "back"):
                    path = f"{where}.back_translation.{key}"
                    contents[path] = fingerprint(resolve(absolute_model(getattr(back, key)), None, path))
            if augment is not None and augment.synonyms is not None:
                path = f"{where}.synonyms.path"
                contents[path] = wordnet_fingerprint(Path(augment.synonyms.path), path)
        return contents

    def to_fine_tune(self) -> list[str]:
        """Names of the teachers that must still be fine-tuned."""
        return [
            name
            for name, folder in self.teachers.items()
            if folder != self.bases[name] and not is_finished(folder.parent)
        ]


def prepare(config: RunConfig, errors: Errors | None = None) -> Inputs:
    """Loads and checks. Raises `ConfigError`, `DataError` or `TeacherError`, all of them exit code 2; `errors` gets
    the others as well, of every task, teacher and student that can be checked beside them.

    Makes no variants: `augment_inputs` does. Until then settings are derived as if none were dropped.
    """
    errors = errors or Errors()
    with errors:
        check_gpus(config)
    students = {name: student_start(config, name) for name in config.students}
    bases, starts, tokenizers = _open_models(config, students, errors)
    data = load_tasks(config, errors)
    _check_augment(config, errors)
    facts = Facts(
        _task_facts(config, data),
        *(
            {
                name: model_facts(folder, tokenizers[folder])
                for name, folder in some.items()
                if folder in tokenizers
            }
            for some in (starts, bases)
        ),
    )
    teachers: dict[str, Path] = {}
    complete = (facts.tasks.keys(), facts.students.keys(), facts.teachers.keys()) == (
        config.tasks.keys(),
        config.students.keys(),
        config.teachers.keys(),
    )
    resolved = resolve_config(config, facts) if complete else None
    hidden = resolved.hidden if resolved is not None else frozenset[str]()
    for name, teacher in config.teachers.items():
        if bases.get(name) in tokenizers and teacher.task in data:
            with errors:
                teachers[name] = _served_from(config, name, bases[name], data[teacher.task], facts)
                learnt = teacher.task in hidden
                own = replace(data[teacher.task], task=teacher_task(config, name, data[teacher.task].task))
                _try_tokenizer(tokenizers[bases[name]], own, teacher.max_length, learnt)
                if teacher.fine_tune is not None:
                    own = replace(own, task=of_model(own.task, tokenizers[bases[name]]))
                    check_spelling(tokenizers[bases[name]], own, f"teachers.{name}")
                if learnt:
                    hidden_layer(bases[name], teacher.hidden_layer, f"teachers.{name}")
    for name, student in students.items():
        if starts.get(name) in tokenizers:
            with errors:
                _check_student(
                    student,
                    starts[name],
                    [data[task].task for task in student.lengths if task in data],
                    student_train(config, name).lora,
                )
                for task, length in student.lengths.items():
                    if task in data:
                        own = replace(data[task], task=of_model(data[task].task, tokenizers[starts[name]]))
                        _try_tokenizer(tokenizers[starts[name]], own, length, task in hidden)
                        check_spelling(tokenizers[starts[name]], own, f"students.{name}")
                        if resolved is not None and isinstance(own.task.head, FrameHead):
                            check_smoothing(name, resolved.students[name].loss.tasks[task].label_smoothing)
    if resolved is not None:
        check_vocabularies(
            config, resolved, data, bases=bases, starts=starts, tokenizers=tokenizers, errors=errors
        )
    for task, task_data in data.items():
        if teachers.keys() >= set(config.teachers_of(task)):
            with errors:
                _check_known(config, task_data, bases)
        with errors:
            _check_labels(config, task, task_data)
    errors.stop()
    return Inputs(data, bases, teachers, starts, facts, resolve_config(config, facts))


def augment_inputs(
    config: RunConfig, inputs: Inputs, progress: Progress, check: Callable[[], None]
) -> Inputs:
    """`inputs` with the variants that `tasks.<task>.augment` asks for, and the settings derived anew. Arguments and errors
    as in `with_variants`."""
    data = with_variants(config, inputs.data, progress, check)
    facts = replace(inputs.facts, tasks=_task_facts(config, data))
    return replace(inputs, data=data, facts=facts, resolved=resolve_config(config, facts))


def fold_inputs(config: RunConfig, inputs: Inputs, number: int, of: int) -> Inputs:
    """`inputs` with every task's data split as for fold `number`, from 0, and teachers to be made of that train split.
    Settings are not derived anew, so that a training has them whatever the fold."""
    data = {name: one.fold(number, of) for name, one in inputs.data.items()}
    teachers = {
        name: _served_from(config, name, inputs.bases[name], data[teacher.task], inputs.facts)
        for name, teacher in config.teachers.items()
    }
    return replace(inputs, data=data, teachers=teachers)


def _task_facts(config: RunConfig, data: Mapping[str, TaskData]) -> dict[str, TaskFacts]:
    return {
        name: task_data.facts(expected_variants(config.tasks[name].augment, task_data))
        for name, task_data in data.items()
    }


def _check_augment(config: RunConfig, errors: Errors) -> None:
    """Adds an error where a fill-mask model, a translator, or WordNet is not what `augment` needs."""
    for name, task in config.tasks.items():
        where, augment = f"tasks.{name}.augment", task.augment
        if augment is not None and (masked := augment.masked) is not None:
            with errors:
                folder = resolve(absolute_model(masked.model), masked.revision, f"{where}.masked")
                check_fill_mask(folder, f"{where}.masked")
        if augment is not None and (back := augment.back_translation) is not None:
            with errors:
                check_translators(back, f"{where}.back_translation", config.tasks[name].declared)
        if augment is not None and augment.synonyms is not None:
            with errors:
                wordnet_files(Path(augment.synonyms.path), f"{where}.synonyms.path")


def _open_models(
    config: RunConfig, students: Mapping[str, StudentStart], errors: Errors
) -> tuple[dict[str, Path], dict[str, Path], dict[Path, Any]]:
    """Folders of the teachers and of what the students start from, by name, and tokenizers by folder; `errors` gets
    what cannot be opened, which is left out."""
    bases: dict[str, Path] = {}
    starts: dict[str, Path] = {}
    tokenizers: dict[Path, Any] = {}
    for name, teacher in config.teachers.items():
        with errors:
            bases[name] = resolve(absolute_model(teacher.model), teacher.revision, f"teachers.{name}")
    for name, student in students.items():
        if student.init_from is None or student.init_from in bases:
            with errors:
                starts[name] = start_folder(student, bases)
    for folder in dict.fromkeys((*bases.values(), *starts.values())):
        with errors:
            open_config(folder)  # what is wrong with it would be taken for a fault of the tokenizer
            tokenizers[folder] = open_tokenizer(folder)
    return bases, starts, tokenizers


def model_facts(folder: Path, tokenizer: Any) -> ModelFacts:
    """What is known of the model in a folder. Raises `TeacherError` where its config cannot be read."""
    config = open_config(folder)
    layers, family = getattr(config, "num_hidden_layers", None), config.model_type
    return ModelFacts(
        width(config),
        by_word=bool(tokenizer.is_fast and layers is not None and not config.is_encoder_decoder),
        rate_factor=T5_RATE_FACTOR if family.endswith("t5") else 1.0,
    )


def _served_from(config: RunConfig, name: str, base: Path, data: TaskData, facts: Facts) -> Path:
    """The folder that a teacher is served from. Raises `TeacherError` or `ConfigError` where it does not fit its task."""
    teacher, where = config.teachers[name], f"teachers.{name}"
    data = replace(data, task=teacher_task(config, name, data.task))
    if teacher.fine_tune is None:
        check_model(base, data.task, where, max_length=teacher.max_length, labels=teacher.labels)
        return base
    check_kinds(base, [data.task.kind], where)
    if teacher.fine_tune.lora is not None:
        check_adapters(base, teacher.fine_tune.lora, [data.task.kind], f"{where}.fine_tune.lora")
    check_length(base, data.task.head.positions(teacher.max_length), where)
    if teacher.labels is not None:
        raise ConfigError(
            f"{where}.labels: a teacher that is fine-tuned learns the task's labels", "Remove labels."
        )
    recipe, _ = teacher_recipe(teacher.fine_tune, name, teacher.task, facts)
    folder = teacher_folder(config.teachers_dir, name, base, data, recipe, teacher.max_length)
    pull_teacher(config, folder)
    return folder / TEACHER


def _check_student(
    student: StudentStart, start: Path, tasks: Sequence[Task], lora: LoraConfig | None
) -> None:
    """Raises `TutelageError` unless the model that the student starts from is one for its tasks, with its layers, adapters and positions."""
    kinds, where = [task.kind for task in tasks], f"students.{student.name}"
    check_kinds(start, kinds, where)
    try:
        check_layers(open_config(start), student.layers, kinds)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error.cause}", error.remedy) from None
    if lora is not None:
        check_adapters(start, lora, kinds, f"{where}: train.lora")
    for task in tasks:
        check_length(start, task.head.positions(student.lengths[task.name]), where)


def _try_tokenizer(tokenizer: Any, data: TaskData, length: int | None, words: bool) -> None:
    """Encodes one example of the task, with its words where hidden targets are used. Raises where the tokenizer cannot."""
    first = data.splits["validation"].take(np.array([0]))
    data.task.head.encode(tokenizer, first.inputs, length, words=words)


def _check_labels(config: RunConfig, task: str, data: TaskData) -> None:
    """Raises `ConfigError` where the strategy needs labels and a training example has none. `pipeline.config.load` checks
    data.unlabelled only, not null labels."""
    strategy, train = task_aggregation(config, task).strategy, data.splits["train"]
    missing = len(train) - len(data.labelled_train())
    if missing and needs_labels(strategy):
        others = one_of(strategies(data.task.kind, labelled=False))
        raise ConfigError(
            f"tasks.{task}: strategy {strategy} needs labels, {missing} of {len(train)} examples of train have none",
            f"Set tasks.{task}.aggregation.strategy to {others}, or leave those examples out.",
        )


def _check_known(config: RunConfig, data: TaskData, bases: Mapping[str, Path]) -> None:
    """Raises `TeacherError` where no teacher of the task has one of its labels: the soft targets would suppress it."""
    task = data.task
    unknown: set[str] = set(task.reading.labels)
    for name, weight in task_aggregation(config, task.name).weights.items():
        teacher = config.teachers[name]
        if weight == 0:
            continue
        if teacher.fine_tune is not None:
            return
        groups = check_model(
            bases[name], task, f"teachers.{name}", max_length=teacher.max_length, labels=teacher.labels
        )
        if groups is None:
            return
        unknown -= {label for label, group in zip(task.reading.labels, groups, strict=True) if group}
    if unknown:
        raise TeacherError(
            f"tasks.{task.name}: no teacher knows {sorted(unknown)} of {list(task.reading.labels)}",
            "Add a teacher that does, map a label of a teacher's to it, or leave the label out of the data.",
        )


def teacher_specs(config: RunConfig, inputs: Inputs, names: Iterable[str] | None = None) -> list[TeacherSpec]:
    """Specs of the teachers `names`, by default of all; fine-tuned teachers must exist."""
    specs, wanted, store = list[TeacherSpec](), inputs.resolved.hidden, Store(config.store_path)
    for name in config.teachers if names is None else names:
        teacher = config.teachers[name]
        task, folder = teacher_task(config, name, inputs.data[teacher.task].task), inputs.teachers[name]
        made = folder != inputs.bases[name]  # fine-tuned, or trained on
        key_of = partial(store_key, folder, task, max_length=teacher.max_length, labels=teacher.labels)
        dtype = served_dtype(teacher.serving, task.kind.continuous, lambda dtype: store.holds(key_of(dtype)))  # noqa: B023 - called at once
        key = key_of(dtype)
        hidden = None
        if teacher.task in wanted:
            layer = hidden_layer(folder, teacher.hidden_layer, f"teachers.{name}")
            own = hidden_key(folder, task, dtype, layer, max_length=teacher.max_length)
            hidden = HiddenTargets(own, layer)
        tokens = None
        if task.kind.writes and teacher.task in inputs.resolved.soft:
            form = config.tasks[teacher.task].token_targets
            own = token_key(folder, task, dtype, form, max_length=teacher.max_length)
            tokens = TokenTargets(own, form, is_ctc(open_config(folder).architectures))
        specs.append(
            TeacherSpec(
                name=name,
                model=str(folder) if made else absolute_model(teacher.model),
                revision=None if made else teacher.revision,
                task=task,
                serving=teacher.serving,
                key=key,
                dtype=dtype,
                max_length=teacher.max_length,
                labels=teacher.labels,
                hidden=hidden,
                tokens=tokens,
                source=model_source(config, folder),
            )
        )
    return specs


def served_dtype(serving: ServingConfig, continuous: bool, stored: Callable[[Dtype], bool]) -> Dtype:
    """The arithmetic of a teacher's forward. stored: whether the store has targets of the teacher in an arithmetic · continuous:
    whether it predicts numbers: of the years around 2000 bf16 knows every eighth.

    What the store has is not computed again because it comes to another machine, or was begun by an earlier version.
    """
    if serving.dtype != "auto":
        return serving.dtype
    if continuous:
        return "fp32"
    # a driver without a GPU cannot ask the GPUs of other nodes: those of today compute in bf16
    elsewhere = serving.gpus > 0 and not torch.cuda.is_available()
    native = elsewhere or computes_in_bf16(torch.device("cuda" if serving.gpus else "cpu"))
    order: list[Dtype] = ["bf16", "fp32"] if native else ["fp32", "bf16"]
    return next(filter(stored, order), order[0])


def teacher_curves(inputs: Inputs) -> dict[str, Curve]:
    """The validation curves of the fine-tuned teachers that exist, by name; without scores where they are lost."""
    waiting = inputs.to_fine_tune()
    return {
        name: read_curve(folder.parent)
        for name, folder in inputs.teachers.items()
        if folder != inputs.bases[name] and name not in waiting
    }


def fine_tuning_requests(config: RunConfig, inputs: Inputs) -> list[Request]:
    """Requests for the teachers that must still be fine-tuned."""
    requests = []
    for name in inputs.to_fine_tune():
        teacher = config.teachers[name]
        requests.append(
            Request(
                name=name,
                model=model_source(config, inputs.bases[name]) or absolute_model(teacher.model),
                revision=teacher.revision,
                folder=inputs.teachers[name].parent,
                config=inputs.resolved.fine_tunings[name].recipe,
                serving=teacher.serving,
                task=teacher_task(config, name, inputs.data[teacher.task].task),
                max_length=teacher.max_length,
                urls=behind(config, config.teachers_dir.name, inputs.teachers[name].parent.name),
            )
        )
    return requests
