"""The part of the config tree that says which examples a task has. See `pipeline.config.schema`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.fields import Count, LocalPath, Split, Strict


class UnlabelledConfig(Strict):
    """More examples without labels: students learn them from the teachers alone."""

    path: LocalPath
    """As `data.path`."""
    name: str | None = None
    """Configuration of a hub data set."""
    revision: str | None = None
    """Revision of a hub data set."""
    data_files: LocalPath | tuple[LocalPath, ...] | None = None
    """Files, for csv, json, parquet and text."""
    options: dict[str, Any] = Field(default_factory=dict)
    """As `data.options`; its own, the task's are not taken over."""
    split: str = "train"
    """Which split of the data set; `load_dataset`'s slices work."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column of each input field; by default as in the task's `data.columns`."""
    limit: Count | None = None
    """At most this many examples, the same ones every time."""


class DataConfig(Strict):
    """Where a task's examples come from: whatever `datasets.load_dataset` takes, or a folder saved by `save_to_disk`."""

    path: LocalPath
    """`csv`, `json`, `parquet`, `text`, a hub id, or a local folder."""
    name: str | None = None
    """Configuration of a hub data set."""
    revision: str | None = None
    """Revision of a hub data set."""
    data_files: dict[str, LocalPath | tuple[LocalPath, ...]] | None = None
    """Files by split, for csv, json, parquet and text. Relative to `path` where that is a folder, else to the working directory. Files that end in .tsv are separated by tabs; patterns (`part-*.csv`) and compressed files work. JSON: a row a line, a list of rows, an object of columns, or SQuAD's own nested form."""
    options: dict[str, Any] = Field(default_factory=dict)
    """More arguments of the format's loader, under `load_dataset`'s names: for csv e.g. `{delimiter: ";"}`, `{quoting: 3}` (quotes are plain text), `{names: [text, label]}` (a file without a header), `{encoding: latin-1}`; for json `{field: rows}` (the key with the rows)."""
    splits: dict[Split, str] = Field(default_factory=dict)
    """The data set's name of each split, e.g. `{validation: dev}`; `load_dataset`'s slices (`train[:80%]`) work. By default each split has its own name."""
    holdout: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """Share of train set aside, by content hash, for each of validation and test that the data set lacks."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column of each of the kind's fields; by default a field's own name. text-classification: `text`, `label`, and `text_pair` for pairs, which must be named here · token-classification: `words`, `labels` (lists of equal length) · question-answering: `question`, `context`, `answers` (`{text: […], answer_start: […]}` as in SQuAD, or a list of strings; none: unanswerable) · sequence-to-sequence: `source`, `target` · text-generation: `prompt`, `completion`, or in their place `messages`, which must be named here (a list of `{role: …, content: …}` or `{from: …, value: …}`, the assistant's answer last)."""
    labels: tuple[str, ...] | None = None
    """The label space, in order. By default the data set's own class names, else the sorted values of the column in train."""
    max_length: Annotated[int, Field(ge=4)] = 128
    """Tokens a sequence, special tokens counted. Longer texts are truncated, counted and logged (of a sentence's words, the words that are lost); longer contexts are read in overlapping windows. Of sequence-to-sequence: of the source, with its prefix. Of text-generation: of the prompt; a longer one loses its beginning."""
    target_length: Annotated[int, Field(ge=4)] = 128
    """Of kinds that write: most tokens of a target, in training and when a model writes. Longer references are truncated, counted and logged."""
    unlabelled: UnlabelledConfig | None = None
    """More training examples, without labels. Rows of train whose label is null are the same."""
    limit: dict[Split, Count] = Field(default_factory=dict)
    """At most this many examples a split, the same ones every time; a larger limit keeps those of a smaller one."""


class TransferConfig(Strict):
    """Training texts of other tasks, which this task's teachers label too: students learn them from the teachers alone. `transfer: all` and `transfer: [a, b]` are short for `{tasks: all}` and `{tasks: [a, b]}`."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | Literal["all"] = "all"
    """The tasks whose texts are taken; `all`: every other task whose texts fit. A task of single texts may take those of any task, a task of pairs those of pairs alone."""
    limit: Count | None = None
    """At most this many texts, of all these tasks together, the same ones every time; a larger limit keeps those of a smaller one."""

    @model_validator(mode="before")
    @classmethod
    def _from_tasks(cls, given: Any) -> Any:
        if not isinstance(given, dict | list | tuple | cls) and given != "all":
            raise ValueError("give `all`, a list of tasks, or a section")
        section = given if isinstance(given, dict | cls) else {"tasks": given}
        if isinstance(section, dict) and isinstance(section.get("tasks"), list):  # no JSON any more: strict
            return {**section, "tasks": tuple(section["tasks"])}
        return section


Replaced = Annotated[float, Field(gt=0, le=1)]
VariantCount = Annotated[int, Field(ge=1, le=1000)]


class MaskedConfig(Strict):
    """Words replaced by what a masked language model finds likely in their place (TinyBERT, arXiv 1909.10351)."""

    model: LocalPath
    """Hub id or local folder of any fill-mask model; safetensors only."""
    revision: str | None = None
    """Revision of a hub model."""
    variants: VariantCount = 2
    """Variants a text; a larger number keeps those of a smaller one."""
    share: Replaced = 0.4
    """Chance of each word to be replaced; at least one word is."""
    candidates: Annotated[int, Field(ge=1, le=1000)] = 15
    """A word is replaced by one of so many of the model's likeliest words, each as likely."""


class SynonymsConfig(Strict):
    """Words replaced by synonyms: other words of their most frequent sense in WordNet in each part of speech (English)."""

    path: LocalPath
    """Folder with WordNet's files `index.noun`, `data.noun` … (Debian: package wordnet-base, `/usr/share/wordnet`)."""
    variants: VariantCount = 1
    """Variants a text; a larger number keeps those of a smaller one."""
    share: Replaced = 0.4
    """Chance of each word that has a synonym to be replaced; at least one word is."""


class DropoutConfig(Strict):
    """Words left out."""

    variants: VariantCount = 1
    """Variants a text; a larger number keeps those of a smaller one."""
    share: Replaced = 0.1
    """Chance of each word to be left out; at least one word is, and one stays."""


class BackTranslationConfig(Strict):
    """Whole texts, translated into another language and back."""

    there: LocalPath
    """Hub id or local folder of a sequence-to-sequence model that translates the task's texts; safetensors only."""
    back: LocalPath
    """The same for the way back."""
    there_prefix: str = ""
    """Text that `there` reads before each text, as T5's models need it."""
    back_prefix: str = ""
    """Text that `back` reads before each translation."""
    beams: Annotated[int, Field(ge=1, le=64)] = 4
    """Beams of both searches; there are at least as many as `variants`."""
    max_length: Annotated[int, Field(ge=4)] = 128
    """Tokens of a text and of what is written."""
    variants: Annotated[int, Field(ge=1, le=64)] = 1
    """Variants a text: the best ones of the way back."""


class AugmentConfig(Strict):
    """Variants of the task's own training texts, which the teachers label as texts of their own: students learn them from the teachers alone. Give one method or several."""

    masked: MaskedConfig | None = None
    """Replacement by a masked language model."""
    synonyms: SynonymsConfig | None = None
    """Replacement by WordNet's synonyms."""
    dropout: DropoutConfig | None = None
    """Word dropout; `{}` for its defaults."""
    back_translation: BackTranslationConfig | None = None
    """Translation there and back; not for kinds that label words."""
    keep_labels: bool = False
    """true: a variant has its text's label, too, so it takes the hard loss and the supervised baseline learns it. Only where changed words cannot change the label."""

    @model_validator(mode="after")
    def _some_method(self) -> Self:
        if not self.methods:
            raise ValueError(f"give one of {', '.join(METHODS)}")
        return self

    @property
    def methods(self) -> dict[str, int]:
        """Variants a text by method, for the methods that are given."""
        given = {name: getattr(self, name) for name in METHODS}
        return {name: section.variants for name, section in given.items() if section is not None}


METHODS = ("masked", "synonyms", "dropout", "back_translation")
"""The sections of `augment` that make variants, in the order in which they make them."""
