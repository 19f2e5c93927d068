"""The layout of report.json, group.json and study.json. `pipeline.report` and `tune.report` write these files.

Scores are shares (0.862), not points. Mappings are keyed by the names in the run's config. `pipeline.report.json_file` refuses a file of
another version: `tutelage train` on a finished run evaluates again and writes a new file; it trains nothing.

This module does not import torch, so that `tutelage compare` starts fast. docs/report_schema.py makes the JSON schema
in docs/report.schema.json from these classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Version = Literal[2]
TrialStatus = Literal["running", "finished", "early-stopped", "failed", "interrupted"]
VERSION: Version = 2


class Record(BaseModel):
    """Frozen, no unknown keys, no NaN or Inf, no silent type conversion."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


# ---------------------------------------------------------------- scores


class StudentScores(Record):
    """A student's test score and what it is compared with."""

    score: float
    """Test score: the task's metric, or its mean over the tasks that the student learns."""
    ensemble: float
    """Score of the ensemble of the teachers, over the same tasks."""
    supervised: float | None
    """Score of the supervised baseline: the same student from the same start, trained on labels alone; null without it."""
    retention: float | None
    """score ÷ ensemble; null where the ensemble scores 0."""
    gap_recovered: float | None
    """(score − supervised) ÷ (ensemble − supervised); null without a baseline or without a clear gap."""
    delta_error: float | None
    """Standard error of score − supervised over the choice of test examples, paired by example (bootstrap)."""


class TaskStudentScores(StudentScores):
    """A student's scores on one task."""

    best_teacher: float | None = None
    """Score of the same student from the task's best teacher alone; null where it was not trained."""
    best_teacher_error: float | None = None
    """Standard error of score − best_teacher, paired by example (bootstrap)."""
    agreement: float
    """Share of answers in which the student agrees with the ensemble."""
    ece: float | None
    """Expected calibration error, 15 bins; null for kinds without class probabilities."""


class MeanStudentScores(StudentScores):
    """A student's mean scores over the tasks that it learns."""

    tasks: tuple[str, ...]


class StandardErrors(Record):
    """Standard error of each model's score, over the choice of test examples (bootstrap)."""

    ensemble: float
    students: Mapping[str, float]
    supervised: Mapping[str, float]
    """The supervised baselines, by student."""


class Section(Record):
    """The scores of the ensemble and the students on one task, or their unweighted means over tasks."""

    ensemble: float
    """Score of the ensemble of the task's teachers, or their mean over all tasks."""
    students: Mapping[str, StudentScores]
    """The students that learn the task."""
    standard_errors: StandardErrors


class MeanSection(Section):
    """Unweighted means over tasks; a student's over those that it learns."""

    students: Mapping[str, MeanStudentScores]


class Metrics(Record):
    """Every metric of every model, by the metric's name."""

    teachers: Mapping[str, Mapping[str, float]]
    students: Mapping[str, Mapping[str, float]]
    supervised: Mapping[str, Mapping[str, float]]
    """The supervised baselines, by student."""
    ensemble: Mapping[str, float]


class VariantExample(Record):
    """A training text and one of its variants; of a pair the sides that differ."""

    text: str
    variant: str


class VariantsRecord(Record):
    """What one method of `augment` made of a task's training texts."""

    count: int
    """Variants that joined train."""
    dropped: Mapping[str, int]
    """How many did not, by reason."""
    seconds: float
    """What making them took; where a masked language model had answered in an earlier run, the seconds of that run."""
    asked: int
    """Words that a masked language model was asked about in this launch."""
    examples: tuple[VariantExample, ...]
    """Five of them."""


class WrittenExample(Record):
    """A test example of a task whose models write texts, with what each wrote, by name."""

    source: str
    reference: str
    teachers: Mapping[str, str]
    ensemble: str
    students: Mapping[str, str]
    supervised: Mapping[str, str]


class TaskReport(Section):
    """One task on its test split."""

    kind: str
    metric: str
    """The metric that `score`, `teachers` and `ensemble` are measured by."""
    teachers: Mapping[str, float]
    """Score by teacher."""
    students: Mapping[str, TaskStudentScores]
    examples: Mapping[str, int]
    """Examples by split."""
    labels: tuple[str, ...]
    majority: float
    """Best score of a constant prediction; where models write, that of copies of the sources."""
    standard_error: float
    """The largest value in standard_errors."""
    aggregation: str
    """Aggregation strategy that combines the teachers into the ensemble."""
    metrics: Metrics
    variants: Mapping[str, VariantsRecord] = {}
    """Variants of the training texts by method of `augment`; empty without it."""
    texts: tuple[WrittenExample, ...] = ()
    """Where models write, the test examples on which students and ensemble differ most."""
    notes: tuple[str, ...]


# ---------------------------------------------------------------- costs and teachers


class Size(Record):
    """Size of a model's weights."""

    parameters: int
    bytes: int


class Sizes(Record):
    """Sizes by model."""

    students: Mapping[str, Size]
    teachers: Mapping[str, Size]


class Latency(Record):
    """Milliseconds that a model takes for one example alone, tokenizer included, on one thread of the CPU that
    evaluated the run. Each example is predicted in many rounds; both numbers are means over the same test examples."""

    best_ms: float
    """Each example's fastest round: the model's time when no other work disturbs it."""
    median_ms: float
    """Each example's median round. It is far above best_ms on a busy machine."""


class TaskLatencies(Record):
    """One task's students and teachers, timed in turn on the same test examples."""

    students: Mapping[str, Latency]
    teachers: Mapping[str, Latency]


class Latencies(Record):
    """Latencies by task."""

    tasks: Mapping[str, TaskLatencies]
    busy: str | None
    """The reason why these times are not reliable; null where nothing disturbed them."""

    def student_ms(self, name: str) -> float | None:
        """A student's best_ms, mean over the tasks that it learns; None without any."""
        return _mean([models.students[name] for models in self.tasks.values() if name in models.students])

    def teacher_ms(self, name: str, task: str) -> float | None:
        """A teacher's best_ms on its task; None where it has no latency."""
        return _mean([self.tasks[task].teachers.get(name)]) if task in self.tasks else None


def _mean(latencies: Sequence[Latency | None]) -> float | None:
    times = [one.best_ms for one in latencies if one is not None]
    return fmean(times) if times and len(times) == len(latencies) else None


class VersusTeachers(Record):
    """A student's cost compared with its teachers'; null where a size or a latency is missing."""

    times_smaller: float | None
    """Parameters of all teachers together ÷ the student's."""
    times_faster: float | None
    """Mean of times_faster_by_task."""
    times_faster_by_task: Mapping[str, float]
    """Sum of the latencies of the task's teachers ÷ the student's latency, on the same examples."""


class PreflightFindings(Record):
    """Measurements of one teacher on a sample of the validation split, before it labels."""

    teacher: str
    task: str
    metric: str
    examples: int
    score: float
    majority: float
    """Best score of a constant prediction."""
    chance: float | None
    """Mean score of random predictions: the teacher's own in random order, or those of the same model under random
    heads; null where there are none."""
    entropy: float | None
    """Mean entropy of the predictions ÷ ln(classes); null for numbers."""
    ece: float | None
    self_loss: float
    """Soft loss of the teacher to its own stored targets."""
    replica_difference: float
    """Largest difference between two replicas' logits ÷ the logits' standard deviation."""
    rounding: float
    """Mean difference of the logits to those in fp32 ÷ their standard deviation; 0 for a teacher in fp32, or one that writes texts."""
    truncated: float
    """Share of the examples (of the words, for token-classification) cut at max_length."""
    agreement: Mapping[str, float]
    """Share of equal answers, by each other teacher of the task."""
    problems: tuple[str, ...]
    """Reasons why this teacher should not be distilled; they stop the run."""
    warnings: tuple[str, ...]
    """Possible problems of this teacher; they do not stop the run."""


class RecipeRecord(Record):
    """How a model was trained. A supervised baseline may have had other epochs; a note says which."""

    epochs: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    patience: int | None
    """Epochs without a better validation score before training stops; null: no early stopping."""
    derived: Mapping[str, str]
    """The reason for each value that the config does not give, by its key."""


class LossRecord(Record):
    """A student's loss on one task."""

    hard: float
    soft: float
    hidden: float = 0.0
    text: float = 0.0
    """Share of the examples that learn their teachers' text in place of the reference."""
    label_smoothing: float = 0.0
    """Part of a token's hard label that the vocabulary shares."""
    beta: float = 0.0
    """Of the soft loss: β of the generalised Jensen-Shannon divergence; 0: KL of the teachers from the student."""
    on_policy: float = 0.0
    """Share of the examples that learn the student's own text of the round before, by their teachers' distributions."""
    temperature: float
    derived: Mapping[str, str]
    """The reason for each value that the config does not give, by its key."""


class StageRecord(Record):
    """One part of a student's training."""

    epochs: int
    learning_rate: float
    head_learning_rate: float
    unfreeze: Literal["gradual"] | None = None
    """`gradual`: the encoder's layers were trained one after another from the top."""
    loss: Mapping[str, LossRecord]
    """By task."""


class StudentRecord(RecipeRecord):
    """How a student was trained."""

    loss: Mapping[str, LossRecord]
    """By task; with stages, that of those which have none of their own."""
    task_focus: Literal["gap"] | None = None
    """`gap`: tasks further behind their ensemble got more steps and a larger loss weight."""
    stages: tuple[StageRecord, ...] = ()
    """In order; empty where the training was in one part."""


class Advice(Record):
    """One thing that a next run should change, from what this one measured."""

    code: str
    """Short name that does not change between versions, for scripts."""
    text: str
    """The measurement in one sentence or two."""
    key: str
    """Dotted path of the config key to change."""
    value: int | float | Mapping[str, float] | None
    """Suggested value of that key; null where none can be computed."""


class GroupAdvice(Advice):
    """Advice that most seeds of a group have. text and value: those of the first of these seeds."""

    seeds: tuple[int, ...]


# ---------------------------------------------------------------- the files


class Report(Record):
    """report.json: every number of one finished run."""

    report_version: Version = VERSION
    """Layout of this file."""
    name: str
    group: str | None
    """Name of the group of seeds that this run belongs to; null for a single run."""
    seed: int
    tasks: Mapping[str, TaskReport]
    macro: MeanSection
    """Unweighted mean of the tasks' scores; retention and gap_recovered are ratios of these means."""
    teacher_forwards: Mapping[str, int]
    """Examples that each teacher labelled in this launch."""
    soft_targets: Mapping[str, int]
    """Distinct examples that the run needs of each teacher."""
    forwards_ratio: float | None
    """All teacher_forwards ÷ all soft_targets; null where none are needed."""
    timings_s: Mapping[str, float]
    """Seconds by stage, over all launches. Of a killed launch the last few seconds are missing."""
    launches: int
    """Number of times that the run was launched."""
    first_step_s: float | None
    """Seconds from the last launch to the first step of its first student; null where it began none."""
    size: Sizes
    latency: Latencies
    versus_teachers: Mapping[str, VersusTeachers]
    """Cost compared with the teachers', by student."""
    versions: Mapping[str, str]
    """Version by package."""
    preflight: tuple[PreflightFindings, ...]
    recipes: Mapping[str, StudentRecord]
    """How each student was trained."""
    fine_tunings: Mapping[str, RecipeRecord]
    """How each teacher that was fine-tuned was trained."""
    advice: tuple[Advice, ...] = ()
    """What a next run should change, what matters most first; empty where nothing is wrong."""
    notes: tuple[str, ...]

    def tasks_of(self, student: str) -> dict[str, TaskReport]:
        """The tasks that a student learns."""
        return {name: self.tasks[name] for name in self.macro.students[student].tasks}


class SpreadRecord(Record):
    """Mean and spread of one number over several seeds."""

    mean: float
    sd: float | None
    """Standard deviation of the sample (n − 1); null for one seed."""
    lowest: float
    highest: float
    by_seed: tuple[float, ...]


class DeltaRecord(SpreadRecord):
    """Mean and spread of score − supervised over seeds."""

    p: float | None
    """Two-sided sign-flip permutation test over the paired seeds; null for one seed."""


class OutcomeRecord(Record):
    """A student over several seeds; retention and gap_recovered are ratios of means."""

    score: SpreadRecord
    ensemble: SpreadRecord
    """The ensemble's score, over the tasks that the student learns."""
    supervised: SpreadRecord | None
    delta: DeltaRecord | None
    retention: float | None
    gap_recovered: float | None


class GroupSection(Record):
    """One task, or the mean over tasks, over several seeds."""

    ensemble: SpreadRecord
    students: Mapping[str, OutcomeRecord]


class GroupTask(GroupSection):
    """One task over several seeds."""

    metric: str
    teachers: Mapping[str, SpreadRecord]


class GroupReport(Record):
    """group.json: the runs of one config under several seeds."""

    report_version: Version = VERSION
    """Layout of this file."""
    name: str
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    """Names of the seeds' runs, whose folders lie beside the group's."""
    tasks: Mapping[str, GroupTask]
    macro: GroupSection
    p_floor: float
    """The lowest p that this number of seeds can give."""
    advice: tuple[GroupAdvice, ...] = ()
    """Advice that more than half of the seeds have."""


class GainRecord(Record):
    """How much a trial is better than the default on validation, in shares of the search's metric."""

    mean: float
    """Over the seeds."""
    error: float
    """Standard error, paired by example; over several seeds also that of the seeds."""
    lowest: float
    """Lower end of the 90 % interval, corrected for the number of trials that could have been picked."""
    by_chance: float
    """What the best of as many trials, all as good as the default, would be expected to show."""


class ChoiceRecord(Record):
    """How the winner was chosen: the default stays unless a trial is better by more than chance."""

    default: int | None
    """Number of the trial with the config's own values; null where no trial has them."""
    winner: int | None
    """Number of the winning trial; null for a default that is no trial."""
    stays: bool
    """Whether the default was not replaced."""
    seeds: tuple[int, ...]
    gains: Mapping[int, GainRecord]
    """Of the other finalists over the default, over the seeds, by number of the trial."""


class TrialRecord(Record):
    """One trial of a search."""

    number: int
    values: Mapping[str, Any]
    """Value by dotted path of the config key."""
    status: TrialStatus
    epochs: int
    seconds: float
    """Wall-clock seconds, over all launches."""
    scores: Mapping[str, float]
    """Validation scores of the kept weights, by macro/score and <task>/<metric>."""
    failures: int
    error: str | None
    best: bool
    """Whether it is the winner."""
    pareto: bool
    """Whether no other trial beats it in one of the metrics without losing in another."""
    gain: GainRecord | None = None
    """Its gain over the trial with the config's own values, with the trials' own seed; null where one of them has no
    predictions."""


class ScoresOnTest(Record):
    """Test scores by seed: of the student with the default's settings and with the winner's, and of their baselines."""

    default: tuple[float, ...]
    default_supervised: tuple[float, ...] | None
    """Scores of the default's settings, trained on labels alone; null without that baseline."""
    best: tuple[float, ...]
    best_supervised: tuple[float, ...] | None
    """Scores of the winner's settings, trained on labels alone; null without that baseline."""
    ensemble: tuple[float, ...]
    gain: float
    """Mean over seeds of best − default."""
    p: float | None
    """p of the gain: two-sided sign-flip permutation test over the paired seeds; null for one seed."""


class OnTest(Record):
    """The gain of a search on the test split."""

    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    """Names of the default's and the winner's runs, whose folders lie beside the study's."""
    scores: Mapping[str, ScoresOnTest]
    """Scores by task, and by `macro` for the mean over tasks."""


class StudyReport(Record):
    """study.json: every number of one search."""

    report_version: Version = VERSION
    """Layout of this file."""
    name: str
    student: str
    """Name of the student whose settings are searched."""
    metrics: tuple[str, ...]
    """The metrics that the search optimises."""
    modes: tuple[str, ...]
    """`max` or `min`, one for each metric."""
    space: Mapping[str, Any]
    """The search space of the config: distribution by dotted path of the key."""
    algorithm: str
    scheduler: str
    folds: int | None = None
    """Folds that each trial was trained and validated on; null: on train and validation as the config has them."""
    trials: tuple[TrialRecord, ...]
    ensemble: Mapping[str, float]
    """Validation scores of the ensemble of the teachers."""
    importance: Mapping[str, float]
    """Share of the score's variance that each value explains."""
    teacher_forwards: Mapping[str, int]
    """Examples that each teacher labelled in this launch."""
    soft_targets: Mapping[str, int]
    """Distinct examples that the study needs of each teacher."""
    forwards_ratio: float | None
    timings_s: Mapping[str, float]
    """Seconds by stage, over all launches."""
    choice: ChoiceRecord | None = None
    """How the winner was chosen; null before, and in a search for several metrics or for one without a standard error."""
    test: OnTest | None = None
    """The test scores; null until default and winner have been trained."""

    @property
    def winner(self) -> TrialRecord | None:
        """The winning trial; None where none has a score, and where the default wins without being a trial."""
        return next((trial for trial in self.trials if trial.best), None)
