"""The whole config tree: one YAML file, `key=value` overrides, strict, frozen, every default here.

Importing this module brings in no torch, Ray or MLflow, so `tutelage check` answers at once and a bad config fails
before anything starts. Attribute docstrings are the config reference: docs/config.md is generated from them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from pipeline.config.adapters import LoraConfig
from pipeline.config.co_train import CoTrainConfig
from pipeline.config.data import AugmentConfig, DataConfig, TransferConfig
from pipeline.config.fields import (
    Count,
    Epochs,
    LocalPath,
    Name,
    NonNegative,
    Positive,
    Share,
    Strict,
)
from pipeline.config.generation import GenerationConfig, TokenTargetsConfig
from pipeline.config.kinds import DEFAULT_PROBLEM, Kind, KindName, Problem, kind_of
from pipeline.config.rounds import RoundsConfig
from pipeline.config.search import TuneConfig
from pipeline.urls import cache_folder, is_url, join

WorkerStrategy = Literal["ddp", "fsdp"]
Strategy = Literal["mean", "log_mean", "confidence", "entropy", "best", "consensus"]


def needs_labels(strategy: Strategy) -> bool:
    """Whether an aggregation strategy reads the examples' labels."""
    return strategy in ("confidence", "best")


def strategies(kind: Kind, *, labelled: bool) -> tuple[Strategy, ...]:
    """How the teachers of a task can be aggregated; labelled: whether all its training examples have labels."""
    made_for = get_args(Strategy)[:-1]
    if kind.writes:
        made_for = ("consensus", "best", "mean")
    elif kind.continuous:
        made_for = ("mean", "confidence", "best")
    return tuple(strategy for strategy in made_for if labelled or not needs_labels(strategy))


def name_of_seed(group: str, seed: int) -> str:
    """Name of a group's run under one of its seeds."""
    return f"{group}-seed{seed}"


def default_strategy(kind: Kind) -> Strategy:
    """The strategy of a task whose config names none."""
    return "consensus" if kind.writes else "mean"


class TaskConfig(Strict):
    """One task that the students learn."""

    kind: KindName
    """The task kind: one text or a pair (label, labels or a number) · a label a word (entities, parts of speech) · a span of a context that answers a question, or none · a text written from a text (translation, summaries) · a text written on from a prompt, by a language model · the text of a recording."""
    problem: Problem = DEFAULT_PROBLEM
    """For text-classification, what a text has: one label, a list of any number of labels, or a number."""
    data: DataConfig
    """Its examples."""
    transfer: TransferConfig | None = None
    """Other tasks' training texts as more examples without labels: `all`, a list of tasks, or a section."""
    augment: AugmentConfig | None = None
    """Variants of its training texts as more examples: words replaced or left out, labelled by the teachers."""
    prefix: str = ""
    """Of kinds that write: text that every model of the task reads before the source, e.g. T5's `"translate English to French: "`; of conversations the system's message."""
    generation: GenerationConfig = GenerationConfig()
    """Of kinds that write: how the students write, and the teachers but for their own `generation`."""
    token_targets: TokenTargetsConfig = TokenTargetsConfig()
    """Of kinds that write: what is stored of the teachers' distributions, where a loss has `soft`."""
    metric: str | None = None
    """The score by which models are selected on validation and compared on test; null: the first of its kind's. Single label: `accuracy`, `macro_f1` · multi-label: `micro_f1`, `macro_f1`, `subset_accuracy` · regression: `pearson`, `spearman` · token-classification: `f1` (of whole entities), `accuracy` (of words) · question-answering: `f1`, `exact_match` (as SQuAD has them) · sequence-to-sequence: `chrf`, `bleu` (as sacrebleu has them), `rouge_l`, `exact_match` · text-generation: `rouge_l`, `exact_match`, `chrf`, `bleu` · speech-recognition: `word_accuracy` (1 − word error rate), `character_accuracy`."""
    aggregation: dict[str, Any] = Field(default_factory=dict)
    """Keys of `aggregation` that differ for this task."""

    @property
    def declared(self) -> Kind:
        """The kind's declaration. Raises `ConfigError` where the kind has no such problem."""
        return kind_of(self.kind, self.problem)

    @property
    def without_labels(self) -> str | None:
        """The key that adds training examples without labels; None where none does."""
        if self.data.unlabelled is not None:
            return "data.unlabelled"
        if self.transfer is not None:
            return "transfer"
        return None if self.augment is None or self.augment.keep_labels else "augment"


class EarlyStoppingConfig(Strict):
    """Stop when the validation score no longer rises; the best epoch's weights are kept."""

    patience: Count | None = None
    """Epochs without a better validation score before training stops; null: derived from the epochs."""


class OptimizationConfig(Strict):
    """How one model is trained; shared by teachers and students."""

    epochs: Epochs | None = None
    """Passes over the training examples; null: derived from their number."""
    batch_size: Count = 32
    """Examples an optimiser step, over all workers, all of one task; each weighs the same in the loss."""
    tokens_per_forward: Count = 4096
    """Most padded tokens of a forward pass. A step with more is computed in parts, which saves memory and changes no loss; one longer example is a part by itself. Where a device's memory is too small for it, passes are made smaller by themselves (of several workers: the run ends and says so)."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimiser."""
    learning_rate: Positive | None = None
    """Peak learning rate; null: derived from the model's width, for `adamw` alone."""
    head_learning_rate: Positive | None = None
    """Peak learning rate of the heads, which start from nothing; null: derived from `learning_rate`."""
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
    early_stopping: EarlyStoppingConfig | None = EarlyStoppingConfig()
    """Early stopping; null: train every epoch and keep the last weights."""
    max_skipped_steps: Count = 5
    """Updates in a row that may be skipped for a NaN or Inf loss before the run stops with exit code 3."""
    lora: LoraConfig | None = None
    """Train low-rank adapters in place of the model's own weights; null: train these."""
    checkpoint_steps: Count = 200
    """Optimiser steps between checkpoints; there is one at the end of each epoch as well."""

    @model_validator(mode="after")
    def _rate_of_sgd(self) -> Self:
        if self.optimizer == "sgd" and self.learning_rate is None:
            raise ValueError("`learning_rate` is missing: only that of adamw can be derived")
        return self


class FineTuneConfig(OptimizationConfig):
    """How a base model becomes a teacher. The result is cached by content and never made twice."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of head, order and dropout. Its own, so that runs with other seeds share their teachers."""


class ServingConfig(Strict):
    """How a teacher is hosted while it labels, and what its fine-tuning may use."""

    replicas: Count = 1
    """Actors that serve this teacher; each starts when the cluster has room for it."""
    cpus: Positive = 1
    """CPUs, and so threads, a replica."""
    gpus: NonNegative = 0
    """GPUs a replica; a fraction shares one."""
    resources: dict[str, Positive] = Field(default_factory=dict)
    """Custom Ray resources a replica, e.g. `{teacher: 1}`."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the teacher's forward. auto: that of the targets that are stored already; else bf16 where the GPU or CPU computes in it, fp32 elsewhere and for regressions."""
    tokens_per_forward: Count = 4096
    """Padded tokens a forward; batches are sorted by length."""
    in_flight: Count = 2
    """Calls waiting at one replica."""
    timeout_s: Positive = 600
    """Longest wait, once its resources are there, for a replica to start or to answer one call, and for a fine-tuning to show any progress."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """Times a dead or hanging replica, or a dead fine-tuning, is replaced before the run stops with exit code 4."""


class TeacherConfig(Strict):
    """One task-specific model that serves soft targets."""

    task: str
    """Name of its task."""
    model: LocalPath
    """Hub id, local folder or filesystem URL of one (`s3://…`); safetensors only."""
    revision: str | None = None
    """Revision of a hub model."""
    fine_tune: FineTuneConfig | None = None
    """How to fine-tune `model` into a teacher; null: `model` is a teacher already."""
    labels: dict[str, str | None] | None = None
    """Mapping from each of its labels that the task does not have to the task's label, or to null for none. Several may have the same meaning (their probabilities are summed). A task's label that no label of the teacher means has no prediction of this teacher. For token-classification entity types are enough (`PERSON: PER`)."""
    max_length: Annotated[int, Field(ge=4)] | None = None
    """Tokens a sequence for this teacher; null: the task's."""
    prefix: str | None = None
    """Of kinds that write: as `prefix` of the task, for this teacher; null: the task's."""
    generation: dict[str, Any] = Field(default_factory=dict)
    """Of kinds that write: keys of the task's `generation` that differ for this teacher."""
    hidden_layer: Count | None = None
    """The layer, counted from 1, whose hidden states students match where a loss has `hidden`; null: the middle one."""
    preflight: Literal["stop", "warn"] = "stop"
    """What a failed preflight does: no better than constant or random predictions, uniform predictions, permuted labels, a flipped sign, replicas that differ."""
    serving: ServingConfig = ServingConfig()
    """How it is hosted."""


class AggregationConfig(Strict):
    """Several teachers' soft targets → one target."""

    strategy: Strategy | None = None
    """null: `consensus` for kinds that write, else `mean` · `mean` of probabilities (with `teacher_weights`: the weighted mixture) · `log_mean`: of log-probabilities, renormalised · `confidence`: each example weighs its teachers by their loss on its label (CA-MKD) · `entropy`: by how sure they are, no labels needed · `best`: the teacher with the lowest loss on the label. Of texts: `consensus`: of all teachers' candidates the one that is nearest to all (minimum Bayes risk by chrF, of speech by word error) · `best`: the one nearest to the reference · `mean`: each teacher's first text, drawn anew each epoch by `teacher_weights`."""
    teacher_weights: dict[str, NonNegative] = Field(default_factory=dict)
    """Weight by teacher, 1 where none is given; normalised to sum to 1 within each task. They multiply the weights that a strategy finds for itself."""
    max_word_error: Positive | None = 0.3
    """Of speech-recognition: no student learns a teacher's text whose word error rate is above this share, to the reference or, where there is none, to the other teachers' texts (their mean); such texts are counted in the report. null: no limit."""


class StageLossConfig(Strict):
    """Weights of a stage's loss terms, normalised to sum to 1; a term that is not named has none."""

    hard: NonNegative = 0
    """Weight of the hard loss."""
    soft: NonNegative = 0
    """Weight of the soft loss."""
    hidden: NonNegative = 0
    """Weight of the hidden loss."""
    temperature: Positive | None = None
    """Temperature of the soft loss; null: each task's own, as `loss` has it."""
    text: Share | None = None
    """Of kinds that write: as `loss.text`, where that is above 0. 0: references alone, each as often as the stage's steps allow, and no example without one. null: that of `loss`."""

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if not self.hard + self.soft + self.hidden:
            raise ValueError("give `hard`, `soft` or `hidden` a weight above 0")
        return self


class StageConfig(Strict):
    """One part of a training. It goes on with the weights of the part before it, with a fresh optimiser and a learning
    rate that rises and falls within it; it has the other keys of `train`."""

    loss: StageLossConfig | None = None
    """What it minimises; null: the student's `loss`."""
    epochs: Epochs | None = None
    """Its length; null: an even share of those of `train.epochs` that no stage names."""
    learning_rate: Positive | None = None
    """Its peak learning rate; null: that of `train`."""
    head_learning_rate: Positive | None = None
    """Its peak learning rate of heads and projections; null: that of `train`."""
    unfreeze: Literal["gradual"] | None = None
    """`gradual`: it trains heads and projections first, then also the encoder's layers one after another from the top, the embeddings last, spread evenly over its epochs; null: all from the start."""

    @property
    def trains_heads(self) -> bool:
        """Whether any term of its loss reads a head."""
        return self.loss is None or bool(self.loss.hard + self.loss.soft)


Layers = Count | tuple[Annotated[int, Field(ge=0)], ...]


class StackLayersConfig(Strict):
    """The layers of a student that reads with an encoder and writes with a decoder."""

    encoder: Layers | None = None
    """How many, or which ones, of the encoder; null or `all`: all."""
    decoder: Layers | None = None
    """How many, or which ones, of the decoder; null or `all`: all."""

    @model_validator(mode="before")
    @classmethod
    def _all(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        own = {key: None if layers == "all" else layers for key, layers in given.items()}
        # no JSON any more: strict
        return {key: tuple(one) if isinstance(one, list) else one for key, one in own.items()}


class StudentConfig(Strict):
    """One student: its start, and its differences from the run's settings."""

    model: LocalPath | None = None
    """Hub id, local folder or filesystem URL of its encoder. Give this or `init_from`."""
    revision: str | None = None
    """Revision of a hub model."""
    init_from: str | None = None
    """Teacher whose embeddings, layers and pooler it starts from."""
    layers: Layers | StackLayersConfig | None = None
    """With `init_from`: how many layers, evenly spaced with the last one kept, or which ones; null: all. Of a teacher with encoder and decoder a section, e.g. `{encoder: 6, decoder: 2}`, or one number for both."""
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """The tasks that it learns, of those of the run; null: all."""
    max_length: dict[str, Annotated[int, Field(ge=4)]] = Field(default_factory=dict)
    """Tokens a sequence for this student, by task; by default the task's."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Keys of `train` that differ for this student."""
    loss: dict[str, Any] = Field(default_factory=dict)
    """Keys of `loss` that differ for this student."""
    stages: tuple[StageConfig, ...] | None = None
    """Stages of this student; `[]`: none; null: the run's."""

    @model_validator(mode="after")
    def _one_start(self) -> StudentConfig:
        if (self.model is None) == (self.init_from is None):
            raise ValueError("give `model` or `init_from`, and not both")
        if self.layers is not None and self.init_from is None:
            raise ValueError("`layers` needs `init_from`")
        if self.tasks is not None and len(set(self.tasks)) < len(self.tasks):
            raise ValueError("`tasks` names one twice")
        own = self.layers
        for listed in (own.encoder, own.decoder) if isinstance(own, StackLayersConfig) else (own,):
            if isinstance(listed, tuple) and (not listed or list(listed) != sorted(set(listed))):
                raise ValueError("`layers` must name at least one layer, in rising order, each once")
        return self


class LossConfig(Strict):
    """Hard loss against labels + T² · KL (or what `beta` says) soft loss against the aggregated target + hidden loss against hidden states."""

    hard: NonNegative | None = None
    """Weight of the hard loss; null: derived for each task from its labels."""
    soft: NonNegative | None = None
    """Weight of the soft loss; null: derived for each task from its labels. `hard`, `soft` and `hidden` are normalised to sum to 1."""
    hidden: NonNegative = 0
    """Weight of the hidden loss: the mean squared error, in variances, of a projection of the student's last hidden states to those of one layer of each teacher, word by word. Beside the others in one training it may help less than in a stage of its own (`stages`)."""
    temperature: Positive | None = None
    """Temperature of teachers and student in the soft loss; null: derived for each task from its labels."""
    task_temperatures: dict[str, Positive] = Field(default_factory=dict)
    """Temperature of a task that needs another, e.g. `{entities: 1}`: where nearly all words have one label, a high one spends the loss on telling apart labels that are all wrong."""
    beta: Share = 0
    """β of the soft loss between distributions, the generalised Jensen-Shannon divergence (GKD, 2306.13649): 0: KL of the teachers from the student · 1: KL of the student from the teachers, by which a student leaves out what it has no room for · between: between both."""
    text: Share | None = None
    """Of kinds that write: the share of examples, drawn anew each epoch, that learn to write their teachers' text in place of the reference (sequence-level distillation, Kim & Rush 2016). An example without reference always does. null: derived."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0
    """Of kinds that write: the part of a token's hard label that all tokens of the vocabulary share, of the supervised baseline too."""
    annealing: Literal["constant", "linear"] = "constant"
    """`linear`: the soft weight falls to 0 over training and the hard weight takes what it loses (teacher annealing)."""
    task_weights: dict[str, NonNegative] = Field(default_factory=dict)
    """Weight by task, 1 where none is given; normalised to a mean of 1. In a stage on hidden states alone all tasks but those of weight 0 weigh the same."""


class TrainConfig(OptimizationConfig):
    """How the students are trained."""

    task_sampling: Share = 0.75
    """τ: tasks are drawn ∝ n^τ, n the batches of one pass; 1: every example once an epoch, 0: all tasks alike."""
    task_focus: Literal["gap"] | None = None
    """`gap`: tasks that are further behind their ensemble on validation get more steps and a larger loss weight, from the second epoch on; null: all keep their shares."""
    workers: Count = 1
    """Ray Train workers; they share each step's batch."""
    strategy: WorkerStrategy = "ddp"
    """How several workers hold a student: each a whole one (`ddp`), or each a part of its parameters, gradients and optimiser state (`fsdp`) beside the weights alone, for one whose training does not fit a device."""
    cpus_per_worker: Positive | None = None
    """CPUs, and so threads (at least one), a worker; a fraction lets several share one; null: this machine's cores shared evenly (1 on an existing cluster)."""
    gpus_per_worker: NonNegative = 0
    """GPUs a worker."""
    resources_per_worker: dict[str, Positive] = Field(default_factory=dict)
    """Custom Ray resources a worker, e.g. `{student: 1}`."""
    max_failures: Annotated[int, Field(ge=0)] = 2
    """Times the worker group is restarted from its last checkpoint after a worker died."""


class StoreConfig(Strict):
    """Soft targets on disk, shared by runs."""

    path: LocalPath | None = None
    """Local folder or filesystem URL (`s3://…`); null: `<runs_dir>/_store`."""


class TrackingConfig(Strict):
    """MLflow."""

    enabled: bool = True
    """false: record nothing in MLflow; the report is written all the same."""
    uri: str | None = None
    """Tracking server (`http://…`) or `sqlite:///file`; null: `<runs_dir>/_mlflow/mlflow.db`, on this machine also where `runs_dir` is a URL."""
    experiment: Annotated[str, Field(min_length=1)] | None = None
    """Experiment; null: the run's name."""


class ClusterConfig(Strict):
    """Where Ray runs."""

    address: str | None = None
    """null: a private local Ray, gone when the command ends; `auto`, `host:port` or `ray://…`: an existing cluster."""
    cpus: Count | None = None
    """CPUs that the private local Ray offers; null: the machine's cores."""
    nodes_timeout_s: Positive = 900
    """Longest wait for a node that can hold a teacher, where the cluster has none yet; what other work takes is waited for without a limit."""


class RunConfig(Strict):
    """One run: tasks, their teachers, the students distilled from them."""

    name: Name
    """Run folder and, by default, MLflow experiment."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the students' heads, data order and dropout."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """`tutelage train` runs once under each of these instead of `seed`, as runs `<name>-seed<seed>` of one group: mean, spread and a paired test against the baseline are in the group's folder. 8 are enough for such a test, 5 are not."""
    runs_dir: LocalPath = "runs"
    """Folder of the run folders, or its filesystem URL (`s3://…`); teachers, store and the embedded MLflow sit beside them. On a cluster a folder that all nodes see, or a URL."""
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
    stages: tuple[StageConfig, ...] | None = None
    """The students' trainings in parts, one after another, e.g. `[{loss: {hidden: 1}}, {loss: {soft: 1}}, {loss: {hard: 1}}]`; `[]`: in one; null: derived, in a training of at least the derived length half of the epochs on the teachers' hidden states, then the student's loss. The best weights on validation are kept, of whichever part; only the last one stops early. Baselines have no stages, and as many epochs as all of them."""
    baselines: tuple[Literal["supervised", "best_teacher"], ...] = ("supervised",)
    """`supervised`: each student again from the same start, on labels alone: by its student's epochs, by a third of them, and where some text is unlabelled by as many as its student's steps allow; the best one on validation is kept · `best_teacher`: each student again as it is, but of each task from the one teacher that is best on validation: what several teachers are worth. Only tasks of several teachers have one."""
    rounds: RoundsConfig | None = None
    """`tutelage train` trains in rounds, as runs `<name>-round0`, `-round1` …; rounds side by side are in the folder `<name>`."""
    co_train: CoTrainConfig | None = None
    """Teachers that are trained on beside their student; null: teachers stay as they are, and label each example once."""
    store: StoreConfig = StoreConfig()
    """Where soft targets are kept."""
    tracking: TrackingConfig = TrackingConfig()
    """Where runs are recorded."""
    cluster: ClusterConfig = ClusterConfig()
    """Where Ray runs."""
    tune: TuneConfig | None = None
    """The search of `tutelage tune`; no other command reads it."""

    @property
    def runs_url(self) -> str | None:
        """`runs_dir` where it is a URL, else None."""
        return self.runs_dir if is_url(self.runs_dir) else None

    @property
    def runs_path(self) -> Path:
        """`runs_dir` where it is a folder; of a URL this machine's folder for copies of what is there."""
        return cache_folder(self.runs_dir) / "runs" if is_url(self.runs_dir) else Path(self.runs_dir)

    @property
    def run_dir(self) -> Path:
        """This run's folder, on this machine."""
        return self.runs_path / self.name

    @property
    def in_rounds(self) -> bool:
        """Whether it stands for several rounds, and not for one of them."""
        return self.rounds is not None and self.rounds.after is None

    def name_of_seed(self, seed: int) -> str:
        """Name of the group's run under one of `seeds`."""
        return name_of_seed(self.name, seed)

    def name_of_round(self, number: int) -> str:
        """Name of the run, or group, of one of `rounds`."""
        return f"{self.name}-round{number}"

    @property
    def teachers_dir(self) -> Path:
        """Fine-tuned teachers, shared by runs."""
        return self.runs_path.absolute() / "_teachers"

    @property
    def baselines_dir(self) -> Path:
        """Supervised baselines, shared by runs."""
        return self.runs_path / "_baselines"

    @property
    def variants_dir(self) -> Path:
        """What masked language models answered for `augment`, shared by runs."""
        return self.runs_path / "_variants"

    @property
    def preflight_dir(self) -> Path:
        """Preflight's findings on each teacher, shared by runs."""
        return self.runs_path / "_preflight"

    @property
    def store_path(self) -> str:
        """The store's absolute folder, or its URL."""
        if self.store.path is None and self.runs_url is not None:
            return join(self.runs_url, "_store")
        path = self.store.path or str(self.runs_path / "_store")
        return path if is_url(path) else str(Path(path).absolute())

    @property
    def tracking_uri(self) -> str:
        """MLflow's tracking URI."""
        return self.tracking.uri or f"sqlite:///{self.runs_path.absolute() / '_mlflow' / 'mlflow.db'}"

    @property
    def experiment(self) -> str:
        """MLflow's experiment."""
        return self.tracking.experiment or self.name

    def tasks_of(self, student: str) -> tuple[str, ...]:
        """The names of the tasks that a student learns, in the config's order."""
        own = self.students[student].tasks
        return tuple(task for task in self.tasks if own is None or task in own)

    def teachers_of(self, task: str) -> tuple[str, ...]:
        """Names of a task's teachers, in the config's order."""
        return tuple(name for name, teacher in self.teachers.items() if teacher.task == task)

    @property
    def co_trained_tasks(self) -> tuple[str, ...]:
        """The tasks whose teachers are trained on beside a student, in the config's order."""
        own = self.co_train
        return tuple(
            task for task in self.tasks if own is not None and (own.tasks is None or task in own.tasks)
        )

    @property
    def co_trained(self) -> tuple[str, ...]:
        """The names of the teachers that are trained on beside a student, in the config's order."""
        return tuple(name for name, own in self.teachers.items() if own.task in self.co_trained_tasks)
