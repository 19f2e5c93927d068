"""The declarations of the task kinds by name: their config keys, and their facts for the rest of the project.

There are only declarations, so that a config is checked without torch. The code of a kind is in its file under
`pipeline.tasks`, which imports its declaration from here.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ConfigError

KindName = Literal[
    "text-classification",
    "token-classification",
    "question-answering",
    "sequence-to-sequence",
    "text-generation",
    "speech-recognition",
]
Problem = Literal["single_label", "multi_label", "regression"]
Better = Literal["higher", "lower"]
DEFAULT_PROBLEM: Problem = "single_label"


@dataclass(frozen=True)
class Metric:
    """One score of a model.

    better: where it is better · shown: ``points`` for a share of 1, printed times 100 with one decimal; ``decimals``
    for any other number, printed with three.
    """

    name: str
    better: Better = "higher"
    shown: Literal["points", "decimals"] = "points"


NLL = Metric("nll", "lower", "decimals")
TOKEN_ACCURACY = Metric("token_accuracy")
PERPLEXITY = Metric("perplexity", "lower", "decimals")
ECE = Metric("ece", "lower", "decimals")
WORD_ACCURACY = Metric("word_accuracy")
WER = Metric("wer", "lower")
CER = Metric("cer", "lower")


@dataclass(frozen=True)
class Kind:
    """The declaration of a task kind.

    name, problem: their values in a config · inputs: columns that make up an example's content · optional_inputs:
    more of them, read where the config names a column · whole: a column with inputs and labels in one, read in their place where the
    config names it · labels, optional_labels: columns of gold labels, in the same
    way · metrics: its scores; the first is the default · forced: scores of a model that is forced along the gold texts, which
    its predictions do not tell: students and teachers in training have them · auto_class: the class of transformers whose head it uses ·
    outputs: the fields of that class's output that have the predictions · pipeline: the transformers pipeline that
    loads an exported folder, None where there is none · truncates: the unit that truncation loses and
    `Encoded.truncated` counts · continuous: whether predictions are numbers, not distributions · writes: whether they
    are texts · audio: whether the input is a recording · decoder_only: whether one stack of layers reads the input and writes on from it · proportional: whether a long input has a
    long text · text_labels: whether labels are texts, and no names or numbers · heads: endings of the names of the model classes that have its head.
    """

    name: KindName
    problem: Problem
    inputs: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[Metric, ...]
    auto_class: str
    outputs: tuple[str, ...] = ("logits",)
    optional_inputs: tuple[str, ...] = ()
    optional_labels: tuple[str, ...] = ()
    whole: str | None = None
    pipeline: str | None = None
    truncates: Literal["texts", "words", "questions", "sources", "prompts", "recordings"] = "texts"
    continuous: bool = False
    writes: bool = False
    audio: bool = False
    decoder_only: bool = False
    proportional: bool = False
    text_labels: bool = False
    heads: tuple[str, ...] = ()
    forced: tuple[Metric, ...] = ()

    @property
    def selecting(self) -> tuple[str, ...]:
        """Names of the metrics that may select and compare models: those of which higher is better."""
        return tuple(metric.name for metric in self.metrics if metric.better == "higher")

    def content(self, named: Container[str]) -> tuple[str, ...]:
        """The input columns that are read where a config names columns for the roles `named`."""
        if self.whole is not None and self.whole in named:
            return (self.whole,)
        return (*self.inputs, *(role for role in self.optional_inputs if role in named))

    @property
    def labels_words(self) -> bool:
        """Whether each word has a label of its own."""
        return self.truncates == "words"

    def sides(self, named: Container[str]) -> int:
        """How many texts an example is made of: one, or the two of a pair; `named` as in `content`."""
        return len(self.content(named))

    def truths(self, named: Container[str]) -> tuple[str, ...]:
        """The label columns that are read where a config names columns for the roles `named`."""
        if self.whole is not None and self.whole in named:
            return ()
        return (*self.labels, *(role for role in self.optional_labels if role in named))

    @property
    def roles(self) -> tuple[str, ...]:
        """All columns that it may read."""
        whole = () if self.whole is None else (self.whole,)
        return (*self.inputs, *self.optional_inputs, *self.labels, *self.optional_labels, *whole)


TEXT_CLASSIFICATION = Kind(
    "text-classification",
    "single_label",
    inputs=("text",),
    optional_inputs=("text_pair",),
    labels=("label",),
    metrics=(Metric("accuracy"), Metric("macro_f1"), NLL, ECE),
    auto_class="AutoModelForSequenceClassification",
    pipeline="text-classification",
)
MULTI_LABEL = Kind(
    "text-classification",
    "multi_label",
    inputs=("text",),
    optional_inputs=("text_pair",),
    labels=("label",),
    metrics=(Metric("micro_f1"), Metric("macro_f1"), Metric("subset_accuracy"), NLL, ECE),
    auto_class="AutoModelForSequenceClassification",
    pipeline="text-classification",
)
REGRESSION = Kind(
    "text-classification",
    "regression",
    inputs=("text",),
    optional_inputs=("text_pair",),
    labels=("label",),
    metrics=(
        Metric("pearson"),
        Metric("spearman"),
        Metric("mse", "lower", "decimals"),
        Metric("mae", "lower", "decimals"),
    ),
    auto_class="AutoModelForSequenceClassification",
    pipeline="text-classification",
    continuous=True,
)
TOKEN_CLASSIFICATION = Kind(
    "token-classification",
    "single_label",
    inputs=("words",),
    labels=("labels",),
    metrics=(Metric("f1"), Metric("accuracy"), NLL, ECE),
    auto_class="AutoModelForTokenClassification",
    pipeline="token-classification",
    truncates="words",
)
QUESTION_ANSWERING = Kind(
    "question-answering",
    "single_label",
    inputs=("question", "context"),
    labels=("answers",),
    optional_labels=("answer_starts",),
    metrics=(Metric("f1"), Metric("exact_match")),
    auto_class="AutoModelForQuestionAnswering",
    outputs=("start_logits", "end_logits"),
    truncates="questions",
    text_labels=True,
)

SEQUENCE_TO_SEQUENCE = Kind(
    "sequence-to-sequence",
    "single_label",
    inputs=("source",),
    labels=("target",),
    metrics=(Metric("chrf"), Metric("bleu"), Metric("rouge_l"), Metric("exact_match")),
    auto_class="AutoModelForSeq2SeqLM",
    truncates="sources",
    writes=True,
    proportional=True,
    text_labels=True,
    heads=("ForConditionalGeneration", "MTModel", "EncoderDecoderModel"),
    forced=(TOKEN_ACCURACY, PERPLEXITY),
)
TEXT_GENERATION = Kind(
    "text-generation",
    "single_label",
    inputs=("prompt",),
    labels=("completion",),
    whole="messages",
    metrics=(Metric("rouge_l"), Metric("exact_match"), Metric("chrf"), Metric("bleu")),
    auto_class="AutoModelForCausalLM",
    pipeline="text-generation",
    truncates="prompts",
    writes=True,
    decoder_only=True,
    text_labels=True,
    heads=("ForCausalLM", "LMHeadModel"),
    forced=(TOKEN_ACCURACY, PERPLEXITY),
)
SPEECH_RECOGNITION = Kind(
    "speech-recognition",
    "single_label",
    inputs=("audio",),
    labels=("text",),
    metrics=(WORD_ACCURACY, Metric("character_accuracy"), WER, CER),
    auto_class="AutoModelForSpeechSeq2Seq",
    pipeline="automatic-speech-recognition",
    truncates="recordings",
    writes=True,
    audio=True,
    proportional=True,
    text_labels=True,
    heads=("WhisperForConditionalGeneration", "ForCTC"),
    forced=(TOKEN_ACCURACY, PERPLEXITY),
)

KINDS = (
    TEXT_CLASSIFICATION,
    MULTI_LABEL,
    REGRESSION,
    TOKEN_CLASSIFICATION,
    QUESTION_ANSWERING,
    SEQUENCE_TO_SEQUENCE,
    TEXT_GENERATION,
    SPEECH_RECOGNITION,
)
SKILL = "skill"
"""Name of the smooth score that every kind has beside its metrics (`pipeline.tasks.skill`)."""
METRICS = {metric.name: metric for kind in KINDS for metric in (*kind.metrics, *kind.forced)}
"""Every metric by its name: a name means the same, and is shown the same, whatever the kind."""


def writes(kind: str) -> bool:
    """Whether the models of a kind, by its name, write texts."""
    return any(one.writes for one in KINDS if one.name == kind)


def hears(kind: str) -> bool:
    """Whether the inputs of a kind, by its name, are recordings."""
    return any(one.audio for one in KINDS if one.name == kind)


def kind_of(name: KindName, problem: Problem) -> Kind:
    """The kind of a config's `kind` and `problem`. Raises `ConfigError` for a problem that the kind does not have."""
    for kind in KINDS:
        if (kind.name, kind.problem) == (name, problem):
            return kind
    problems = ", ".join(kind.problem for kind in KINDS if kind.name == name)
    raise ConfigError(f"problem: {name} has no {problem}", f"It has {problems}.")
