"""The whole config tree: one YAML file, `key=value` overrides, strict, frozen, every default here.

Importing this module brings in no torch, Ray or MLflow, so `tutelage check` answers at once and a bad
config fails before anything starts. Attribute docstrings are the config reference: docs/config.md is
generated from them.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from pipeline.errors import ConfigError
from pipeline.redact import redact

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
ModelT = TypeVar("ModelT", bound="Strict")


class Strict(BaseModel):
    """Frozen, no unknown keys, no NaN or Inf, no silent type conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class DataConfig(Strict):
    """Where a task's examples come from: whatever `datasets.load_dataset` takes, or a folder saved by `save_to_disk`."""

    path: str
    """`csv`, `json`, `parquet`, `text`, a hub id, or a local folder."""
    name: str | None = None
    """Configuration of a hub data set."""
    revision: str | None = None
    """Revision of a hub data set."""
    data_files: dict[str, str | tuple[str, ...]] | None = None
    """Files by split, for csv, json, parquet and text. Relative to `path` where that is a folder, else to the working directory."""
    splits: dict[Split, str] = Field(default_factory=dict)
    """What the data set calls each split, e.g. `{validation: dev}`; `load_dataset`'s slices (`train[:80%]`) work. By default each split under its own name."""
    holdout: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """Share of train set aside, by content hash, for each of validation and test that the data set lacks."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column of each of the kind's fields (text-classification: `text`, `label`). By default a field's own name."""
    labels: tuple[str, ...] | None = None
    """The label space, in order. By default the data set's own class names, else the sorted values found in train."""
    max_length: Annotated[int, Field(ge=4)] = 128
    """Tokens an example, special tokens counted; longer texts are truncated, counted and logged."""
    limit: dict[Split, Count] = Field(default_factory=dict)
    """At most this many examples a split, the same ones every time; a larger limit keeps those of a smaller one."""


class TaskConfig(Strict):
    """One thing the student must learn."""

    kind: Literal["text-classification"]
    """The task kind."""
    data: DataConfig
    """Its examples."""
    metric: Literal["accuracy", "macro_f1"] = "accuracy"
    """The score by which models are selected on validation and compared on test."""
    aggregation: dict[str, Any] = Field(default_factory=dict)
    """Keys of `aggregation` that this task sets otherwise."""


class EarlyStoppingConfig(Strict):
    """Stop when the validation score no longer rises; the best epoch's weights are kept."""

    patience: Count = 2
    """Epochs without a better validation score before training stops."""


class OptimizationConfig(Strict):
    """How one model is trained; shared by teachers and students."""

    epochs: Count = 3
    """Passes over the training examples."""
    tokens_per_batch: Count = 4096
    """Padded tokens an optimiser step, over all workers and accumulation steps; batches are bucketed by length."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimiser."""
    learning_rate: Positive = 1e-4
    """Peak learning rate."""
    weight_decay: NonNegative = 0.01
    """Weight decay on matrices; biases and norms take none."""
    momentum: Share = 0.9
    """Momentum of `sgd`; `adamw` does not read it."""
    warmup: Share = 0.1
    """Share of all steps over which the learning rate rises from 0."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate goes on after the warm-up."""
    gradient_clip: Positive | None = 1.0
    """Largest norm of the gradient; null: no clipping."""
    dropout: Share | None = None
    """Dropout of the whole model; null: as its own config has it."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of forward and backward; weights stay fp32. auto: bf16 where the GPU or CPU computes in it, fp32 elsewhere."""
    early_stopping: EarlyStoppingConfig | None = None
    """null: train every epoch and keep the last weights."""
    max_skipped_steps: Count = 5
    """Updates in a row that may be skipped for a NaN or Inf loss before the run stops with exit code 3."""
    checkpoint_steps: Count = 200
    """Optimiser steps between checkpoints; there is one at the end of each epoch as well."""


class FineTuneConfig(OptimizationConfig):
    """How a base model becomes a teacher. The result is cached by content and never made twice."""

    epochs: Count = 2
    """Passes over the training examples."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of head, order and dropout. Its own, so that runs with other seeds share their teachers."""


class ServingConfig(Strict):
    """How a teacher is hosted while it labels, and what its fine-tuning may use."""

    replicas: Count = 1
    """Actors that serve this teacher; fewer are started where the cluster has no room for all."""
    cpus: Positive = 1
    """CPUs, and so threads, a replica."""
    gpus: NonNegative = 0
    """GPUs a replica; a fraction shares one."""
    resources: dict[str, Positive] = Field(default_factory=dict)
    """Custom Ray resources a replica, e.g. `{teacher: 1}`."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the teacher's forward."""
    tokens_per_batch: Count = 4096
    """Padded tokens a forward; batches are sorted by length."""
    in_flight: Count = 2
    """Calls waiting at one replica."""
    timeout_s: Positive = 600
    """Longest wait for a replica to start or to answer one call, and for a fine-tuning to show any progress."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """Times a dead or hanging replica, or a dead fine-tuning, is replaced before the run stops with exit code 4."""


class TeacherConfig(Strict):
    """One task-specific model that serves soft targets."""

    task: str
    """The task it knows."""
    model: str
    """Hub id or local folder; safetensors only."""
    revision: str | None = None
    """Revision of a hub model."""
    fine_tune: FineTuneConfig | None = None
    """How to make a teacher of `model`; null: it is one already and is used as is."""
    serving: ServingConfig = ServingConfig()
    """How it is hosted."""


class AggregationConfig(Strict):
    """Several teachers' soft targets → one target."""

    strategy: Literal["mean", "log_mean", "confidence", "entropy", "best"] = "mean"
    """`mean` of probabilities (with `teacher_weights`: the weighted mixture) · `log_mean`: of log-probabilities, renormalised · `confidence`: each example weighs its teachers by their loss on its label (CA-MKD) · `entropy`: by how sure they are, no labels needed · `best`: the teacher with the lowest loss on the label."""
    teacher_weights: dict[str, NonNegative] = Field(default_factory=dict)
    """Weight by teacher, 1 where none is given; normalised to sum to 1 within each task. They multiply the weights that a strategy finds for itself."""


class StudentConfig(Strict):
    """One student: where it starts, and what it sets otherwise than the run."""

    model: str | None = None
    """Hub id or local folder of its encoder. Give this or `init_from`."""
    revision: str | None = None
    """Revision of a hub model."""
    init_from: str | None = None
    """Teacher whose embeddings, layers and pooler it starts from."""
    layers: Count | tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """With `init_from`: how many layers, evenly spaced with the last one kept, or which ones; null: all."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Keys of `train` that this student sets otherwise."""
    loss: dict[str, Any] = Field(default_factory=dict)
    """Keys of `loss` that this student sets otherwise."""

    @model_validator(mode="after")
    def _one_start(self) -> StudentConfig:
        if (self.model is None) == (self.init_from is None):
            raise ValueError("give `model` or `init_from`, and not both")
        if self.layers is not None and self.init_from is None:
            raise ValueError("`layers` needs `init_from`")
        if self.layers == () or (
            isinstance(self.layers, tuple) and list(self.layers) != sorted(set(self.layers))
        ):
            raise ValueError("`layers` must name at least one layer, in rising order, each once")
        return self


class LossConfig(Strict):
    """Hard loss against labels + T² · KL soft loss against the aggregated target."""

    hard: NonNegative = 0.3
    """Weight of the hard loss."""
    soft: NonNegative = 0.7
    """Weight of the soft loss. `hard` and `soft` are normalised to sum to 1."""
    temperature: Positive = 2.0
    """Temperature of teachers and student in the soft loss."""
    annealing: Literal["constant", "linear"] = "constant"
    """`linear`: the soft weight falls to 0 over training and the hard weight takes what it loses (teacher annealing)."""
    task_weights: dict[str, NonNegative] = Field(default_factory=dict)
    """Weight by task, 1 where none is given; normalised to a mean of 1."""


class TrainConfig(OptimizationConfig):
    """How the students are trained."""

    task_sampling: Share = 0.75
    """τ: tasks are drawn ∝ n^τ, n the batches of one pass; 1: every example once an epoch, 0: all tasks alike."""
    accumulation: Count = 1
    """Parts in which each worker takes its share of a step, to save memory; the losses stay the same."""
    workers: Count = 1
    """Ray Train workers; they share each step's batch."""
    cpus_per_worker: Count | None = None
    """CPUs, and so threads, a worker; null: this machine's cores shared evenly (1 on an existing cluster)."""
    gpus_per_worker: NonNegative = 0
    """GPUs a worker."""
    resources_per_worker: dict[str, Positive] = Field(default_factory=dict)
    """Custom Ray resources a worker, e.g. `{student: 1}`."""
    max_failures: Annotated[int, Field(ge=0)] = 2
    """Times the worker group is restarted from its last checkpoint after a worker died."""


class StoreConfig(Strict):
    """Soft targets on disk, shared by runs."""

    path: str | None = None
    """Local folder or filesystem URL (`s3://…`); null: `<runs_dir>/_store`."""


class TrackingConfig(Strict):
    """MLflow."""

    enabled: bool = True
    """false: record nothing in MLflow; the report is written all the same."""
    uri: str | None = None
    """Tracking server (`http://…`) or `sqlite:///file`; null: `<runs_dir>/_mlflow/mlflow.db`."""
    experiment: Annotated[str, Field(min_length=1)] | None = None
    """Experiment; null: the run's name."""


class ClusterConfig(Strict):
    """Where Ray runs."""

    address: str | None = None
    """null: a private local Ray, gone when the command ends; `auto`, `host:port` or `ray://…`: an existing cluster."""
    cpus: Count | None = None
    """CPUs that the private local Ray offers; null: the machine's cores."""


class RunConfig(Strict):
    """One run: tasks, their teachers, the students distilled from them."""

    name: Name
    """Run folder and, by default, MLflow experiment."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the students' heads, data order and dropout."""
    runs_dir: str = "runs"
    """Folder of the run folders; teachers, store and the embedded MLflow sit beside them. Workers must see it: a shared folder on a cluster."""
    tasks: Annotated[dict[Name, TaskConfig], Field(min_length=1)]
    """Tasks by name."""
    teachers: Annotated[dict[Name, TeacherConfig], Field(min_length=1)]
    """Teachers by name; one or more a task."""
    aggregation: AggregationConfig = AggregationConfig()
    """How a task's teachers become one target."""
    students: Annotated[dict[Name, StudentConfig], Field(min_length=1)]
    """Students by name, all on the same soft targets."""
    loss: LossConfig = LossConfig()
    """What the students minimise."""
    train: TrainConfig = TrainConfig()
    """How the students are trained."""
    baselines: tuple[Literal["supervised"], ...] = ("supervised",)
    """`supervised`: each student again from the same start, on labels alone."""
    store: StoreConfig = StoreConfig()
    """Where soft targets are kept."""
    tracking: TrackingConfig = TrackingConfig()
    """Where runs are recorded."""
    cluster: ClusterConfig = ClusterConfig()
    """Where Ray runs."""

    @property
    def run_dir(self) -> Path:
        """This run's folder."""
        return Path(self.runs_dir) / self.name

    @property
    def teachers_dir(self) -> Path:
        """Fine-tuned teachers, shared by runs."""
        return Path(self.runs_dir) / "_teachers"

    @property
    def store_path(self) -> str:
        """The store's folder or URL."""
        return self.store.path or str(Path(self.runs_dir) / "_store")

    @property
    def tracking_uri(self) -> str:
        """MLflow's tracking URI."""
        return self.tracking.uri or f"sqlite:///{Path(self.runs_dir).absolute() / '_mlflow' / 'mlflow.db'}"

    @property
    def experiment(self) -> str:
        """MLflow's experiment."""
        return self.tracking.experiment or self.name

    def teachers_of(self, task: str) -> tuple[str, ...]:
        """Names of a task's teachers, in the config's order."""
        return tuple(name for name, teacher in self.teachers.items() if teacher.task == task)

    def aggregation_of(self, task: str) -> AggregationConfig:
        """The run's aggregation with the task's own keys laid over it."""
        return _overlay(self.aggregation, self.tasks[task].aggregation, ("tasks", task, "aggregation"))

    def train_of(self, student: str) -> TrainConfig:
        """The run's `train` with the student's own keys laid over it."""
        return _overlay(self.train, self.students[student].train, ("students", student, "train"))

    def loss_of(self, student: str) -> LossConfig:
        """The run's `loss` with the student's own keys laid over it."""
        return _overlay(self.loss, self.students[student].loss, ("students", student, "loss"))

    def teacher_weights(self, task: str) -> dict[str, float]:
        """Weight of each of the task's teachers, summing to 1."""
        given = self.aggregation_of(task).teacher_weights
        weights = {name: given.get(name, 1.0) for name in self.teachers_of(task)}
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}

    def task_weights(self, student: str) -> dict[str, float]:
        """Weight of each task in the student's loss, with a mean of 1."""
        given = self.loss_of(student).task_weights
        weights = {name: given.get(name, 1.0) for name in self.tasks}
        total = sum(weights.values())
        return {name: weight * len(weights) / total for name, weight in weights.items()}

    def hard_soft(self, student: str) -> tuple[float, float]:
        """The student's weights of the hard and the soft loss, summing to 1."""
        loss = self.loss_of(student)
        return loss.hard / (loss.hard + loss.soft), loss.soft / (loss.hard + loss.soft)


def _overlay(base: ModelT, keys: Mapping[str, Any], path: tuple[str, ...]) -> ModelT:
    """`base` with `keys` laid over it, checked again as a whole."""
    data = _merge(base.model_dump(mode="json"), keys)
    try:
        return type(base).model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise _explain(error, type(base), path) from None


def _merge(base: Any, keys: Any) -> Any:
    if isinstance(base, dict) and isinstance(keys, Mapping):
        return {**base, **{key: _merge(base.get(key), value) for key, value in keys.items()}}
    return keys


# ---------------------------------------------------------------- loading


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, lay `key.path=value` overrides over it, validate the whole.

    Raises `ConfigError` with the path of the wrong key and, for an unknown key, the nearest name.
    """
    file = Path(path)
    try:
        text = file.read_bytes().decode()
    except OSError as error:
        raise ConfigError(
            f"cannot read {file}: {error.strerror}", "Give the path of a run's YAML file."
        ) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{file}:{line}: not UTF-8", "Save the file as UTF-8.") from None
    try:
        tree = OmegaConf.create(text)
        if not OmegaConf.is_dict(tree):
            raise ValueError
        merged = OmegaConf.merge(tree, _dotlist(overrides))
        data = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, AssertionError) as error:
        cause = " ".join(str(error).split()) or "not a mapping of keys to values"
        raise ConfigError(f"{file}: {cause}", "Mend the YAML; every key may stand once.") from None
    return parse_config(data)


def parse_config(data: Any) -> RunConfig:
    """Validate a config given as plain dicts and lists. Raises `ConfigError`."""
    try:
        config = RunConfig.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise _explain(error, RunConfig, ()) from None
    _check_references(config)
    _check_weights(config)
    return config


def _dotlist(overrides: Sequence[str]) -> Any:
    for override in overrides:
        if not re.match(r"[^=\s]+=", override):
            raise ConfigError(
                f"override {override!r} is not key.path=value", "Write for instance train.epochs=1."
            )
    return OmegaConf.from_dotlist(list(overrides))


def _explain(error: ValidationError, model: type[BaseModel], prefix: tuple[str, ...]) -> ConfigError:
    """The first of pydantic's complaints as one line of cause and one of remedy."""
    first = error.errors()[0]
    loc, known = _walk(model, first["loc"])
    path = ".".join((*prefix, *loc)) or "the config"
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(loc[-1], known, n=1, cutoff=0.5)
        remedy = f"Did you mean {near[0]!r}?" if near else f"Known keys here: {', '.join(known)}."
        return ConfigError(f"{path}: unknown key", remedy)
    if first["type"] == "missing":
        return ConfigError(f"{path}: missing", "Add the key; docs/config.md says what it holds.")
    message = str(first["msg"]).removeprefix("Value error, ")
    value = "" if isinstance(first["input"], dict) else f" (given: {redact(path, first['input'])!r})"
    return ConfigError(f"{path}: {message}{value}", "Change the value; docs/config.md lists what is allowed.")


def _walk(model: type[BaseModel], loc: Sequence[int | str]) -> tuple[list[str], list[str]]:
    """The keys that pydantic's `loc` leads through, less what it adds of its own, and the known keys at its end."""
    section: Any = model
    path: list[str] = []
    for part in loc:
        fields = getattr(section, "model_fields", None)
        if fields is not None and part not in fields:  # an unknown key, or pydantic's "[key]"
            return [*path, *([str(part)] if part != "[key]" else [])], list(fields)
        if fields is not None:
            section = fields[part].annotation
        elif get_origin(section) in (dict, tuple):
            section = get_args(section)[-1 if get_origin(section) is dict else 0]
        else:  # pydantic's name for a member of a union
            break
        path.append(str(part))
        while get_origin(section) in (Annotated, Union, UnionType):  # `X | None`, `Annotated[X, …]` → X
            members = [member for member in get_args(section) if member is not NoneType]
            if get_origin(section) is not Annotated and len(members) > 1:
                break
            section = members[0]
    return path, []


GROUP_KEYS = {"workers", "cpus_per_worker", "gpus_per_worker", "resources_per_worker", "max_failures"}


def _check_references(config: RunConfig) -> None:
    """Names that must exist elsewhere in the config."""
    for name, teacher in config.teachers.items():
        _known(f"teachers.{name}.task", teacher.task, config.tasks)
    for task in config.tasks:
        if not config.teachers_of(task):
            raise ConfigError(
                f"tasks.{task}: no teacher", f"Add a teacher with `task: {task}`, or drop the task."
            )
        for name in config.aggregation_of(task).teacher_weights:
            _known(f"aggregation.teacher_weights.{name}", name, config.teachers)
        for name in config.tasks[task].aggregation.get("teacher_weights", {}):
            own = dict.fromkeys(config.teachers_of(task))
            _known(f"tasks.{task}.aggregation.teacher_weights.{name}", name, own)
    for name, student in config.students.items():
        if student.init_from is not None:
            _known(f"students.{name}.init_from", student.init_from, config.teachers)
        config.train_of(name)  # checks the overlay
        for key in sorted(GROUP_KEYS & student.train.keys()):
            raise ConfigError(
                f"students.{name}.train.{key}: one worker group trains all students", f"Set train.{key}."
            )
        for task in config.loss_of(name).task_weights:
            _known(f"loss.task_weights.{task}", task, config.tasks)


def _known(path: str, name: str, names: Mapping[str, object]) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(names)}."
        raise ConfigError(f"{path}: there is no {name!r}", hint)


def _check_weights(config: RunConfig) -> None:
    """Weights that cannot be normalised."""
    remedy = "Give at least one of them a weight above 0."
    for task in config.tasks:
        given = config.aggregation_of(task).teacher_weights
        if not any(given.get(name, 1.0) for name in config.teachers_of(task)):
            raise ConfigError(f"aggregation.teacher_weights: every teacher of {task} has weight 0", remedy)
    for student in config.students:
        loss = config.loss_of(student)
        if loss.hard + loss.soft == 0:
            raise ConfigError(f"loss: hard and soft are both 0 (student {student})", remedy)
        if not any(loss.task_weights.get(task, 1.0) for task in config.tasks):
            raise ConfigError(f"loss.task_weights: every task has weight 0 (student {student})", remedy)
