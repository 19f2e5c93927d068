"""Variants of a task's own training texts (`tasks.<task>.augment`), which its teachers label as texts of their own.

Which words of a text change, and into what, is a pure function of the example's content key, the method and the number of
the variant: neither rows, order nor batches count, and a larger number of variants keeps those of a smaller one. A
masked language model is asked here, once for each word that some variant replaces (see `pipeline.augment.candidates`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import shake_256
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.augment.back_translation import BackTranslation
from pipeline.augment.masked import Masked
from pipeline.augment.wordnet import read_synonyms
from pipeline.batch import Examples, content_keys
from pipeline.config.data import AugmentConfig
from pipeline.config.schema import RunConfig
from pipeline.data.splits import TaskData, Variants, join
from pipeline.data.transfer import in_held_out, marks
from pipeline.tasks.plain_text import has_words
from pipeline.tasks.variants import Changes, Place, Side, Variant, altered, in_case_of, one_word, word_of

SHOWN = 5
"""Variants of each method that the report shows."""
Progress = Callable[[str, int, int], None]
"""Called with a task, the words that its masked language model has been asked about, and their number."""


def expected_variants(augment: AugmentConfig | None, data: TaskData) -> int:
    """The most variants that a task can get; 0 where it has them already."""
    if augment is None or data.variants:
        return 0
    return sum(augment.methods.values()) * (len(data.splits["train"]) - data.taken)


def expected_note(name: str, augment: AugmentConfig, data: TaskData) -> str:
    """One line on the variants that `tutelage train` will make."""
    methods = ", ".join(f"{method} {count}" for method, count in augment.methods.items())
    most, own = expected_variants(augment, data), len(data.splits["train"]) - data.taken
    how = "with their texts' labels" if augment.keep_labels else "without labels"
    return (
        f"{name}: augment adds at most {most:,} variants of {own:,} texts to train, {how} ({methods} a text)"
    )


def with_variants(
    config: RunConfig, data: Mapping[str, TaskData], progress: Progress, check: Callable[[], None]
) -> dict[str, TaskData]:
    """Every task's data, with the variants of its own texts at the end of train.

    check: called now and then; raises where the run must stop, which keeps what was asked until then. Raises
    `TeacherError`, `ConfigError`, `BadTargetsError` or `ExhaustedError`.
    """
    result = dict(data)
    for name, task_data in data.items():
        augment = config.tasks[name].augment
        if augment is not None:
            methods = methods_of(config, name, augment, partial(progress, name), check)
            result[name] = augmented(task_data, augment, methods)
    return result


# ---------------------------------------------------------------- methods


class Method(Protocol):
    """One way to alter texts."""

    @property
    def name(self) -> str:
        """Its key in the config."""
        ...

    @property
    def variants(self) -> int:
        """Variants a text."""
        ...

    @property
    def share(self) -> float:
        """Chance of each word to be altered."""
        ...

    def places(self, sides: Sequence[Side]) -> list[Place]:
        """The words of an example that it can alter."""
        ...

    def ask(self, asked: Mapping[str, Mapping[int, Side]]) -> tuple[float, int]:
        """Learns what may replace some words, given by text and index, with a side of that text. Returns the seconds that
        this took in whatever run, and how many words a model was asked about in this one."""
        ...

    def replacements(self, side: Side, word: int) -> Sequence[str] | None:
        """What may replace a word; None: it is left out."""
        ...


@dataclass(frozen=True)
class Dropout:
    """Leaves words out."""

    name: ClassVar[str] = "dropout"

    variants: int
    share: float

    def places(self, sides: Sequence[Side]) -> list[Place]:
        """Every word that may be left out."""
        return [(i, int(word)) for i, side in enumerate(sides) for word in np.flatnonzero(side.droppable)]

    def ask(self, asked: Mapping[str, Mapping[int, Side]]) -> tuple[float, int]:
        """Nothing to learn."""
        return 0.0, 0

    def replacements(self, side: Side, word: int) -> None:
        """None: words are left out."""


@dataclass(frozen=True)
class Synonyms:
    """Replaces words by their synonyms. words: synonyms by word in lower case."""

    name: ClassVar[str] = "synonyms"

    words: Mapping[str, Sequence[str]]
    variants: int
    share: float

    def places(self, sides: Sequence[Side]) -> list[Place]:
        """Every free word that has a synonym."""
        free = [(i, int(word)) for i, side in enumerate(sides) for word in np.flatnonzero(side.free)]
        return [(i, word) for i, word in free if self.replacements(sides[i], word)]

    def ask(self, asked: Mapping[str, Mapping[int, Side]]) -> tuple[float, int]:
        """Nothing to learn."""
        return 0.0, 0

    def replacements(self, side: Side, word: int) -> Sequence[str]:
        """The word's synonyms."""
        return self.words.get(word_of(side, word).casefold(), ())


def methods_of(
    config: RunConfig,
    task: str,
    augment: AugmentConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
    check: Callable[[], None] = lambda: None,
) -> list[Method | BackTranslation]:
    """The methods that a task's config names, in the order of `AugmentConfig.methods`; the last two as in `with_variants`."""
    methods, where = list[Method | BackTranslation](), f"tasks.{task}.augment"
    if (masked := augment.masked) is not None:
        methods.append(Masked(masked, config.variants_dir, f"{where}.masked", progress, check))
    if (synonyms := augment.synonyms) is not None:
        words = read_synonyms(Path(synonyms.path), f"{where}.synonyms.path")
        methods.append(Synonyms(words, synonyms.variants, synonyms.share))
    if (dropout := augment.dropout) is not None:
        methods.append(Dropout(dropout.variants, dropout.share))
    if (back := augment.back_translation) is not None:
        where = f"{where}.back_translation"
        methods.append(BackTranslation(back, config.variants_dir, where, progress, check))
    return methods


# ---------------------------------------------------------------- variants


def augmented(
    data: TaskData, augment: AugmentConfig, methods: Sequence[Method | BackTranslation]
) -> TaskData:
    """`data` with the variants that `methods` make of the task's own training texts, and one note that counts them."""
    reading, train = data.task.reading, data.splits["train"]
    own = len(train) - data.taken
    sides = [reading.sides(train.inputs, train.labels, row) for row in range(own)]
    known = marks(reading.plain(train.inputs))
    made: dict[str, Variants] = {}
    for method in methods:
        begun = time.perf_counter()
        planned = (
            _rewritten(method, sides, reading.rewritable)
            if isinstance(method, BackTranslation)
            else _with_words(method, sides, train)
        )
        examples, rows, dropped = _fresh(data, planned.variants, known, augment.keep_labels)
        made[method.name] = Variants(
            count=len(examples),
            dropped={**dropped, **planned.without},
            seconds=planned.seconds + time.perf_counter() - begun - planned.waited,
            asked=planned.asked,
            shown=_shown(data, examples, rows),
        )
        known = np.concatenate((known, marks(reading.plain(examples.inputs))))
        train = join(train, examples)
    note = f"{data.task.name}: {_note(made, own, augment.keep_labels)}"
    return replace(data, splits={**data.splits, "train": train}, notes=(*data.notes, note), variants=made)


@dataclass(frozen=True)
class Planned:
    """Variants before those that are not new are dropped. without: texts that have none, by reason · asked: of how many words
    or texts a model was asked now · seconds: what its answers took in whatever run · waited: how long it was waited for now."""

    variants: list[Variant]
    without: dict[str, int]
    asked: int
    seconds: float
    waited: float


def _with_words(method: Method, sides: Sequence[tuple[Side, ...]], train: Examples) -> Planned:
    """Variants with some words altered."""
    words = [_planned(method, own, int(key)) for own, key in zip(sides, train.keys, strict=False)]
    asking = time.perf_counter()
    seconds, asked = method.ask(_asked(sides, words))
    waited = time.perf_counter() - asking
    variants = [
        Variant(row, sides[row], _changes(method, sides[row], words[row][number]))
        for number in range(method.variants)
        for row in range(len(sides))
        if words[row]
    ]
    without = sum(not one for one in words)
    reasons = {"texts without a word to alter": without} if without else {}
    return Planned(variants, reasons, asked, seconds, waited)


def _rewritten(
    method: BackTranslation, sides: Sequence[tuple[Side, ...]], rewritable: tuple[bool, ...]
) -> Planned:
    """Variants whose texts are said otherwise as a whole."""
    places = [place for place, may in enumerate(rewritable) if may]
    forms, asked, seconds = method.of([own[place].text for own in sides for place in places])
    variants, empty = list[Variant](), 0
    for number in range(method.variants):
        for row, own in enumerate(sides):
            texts = {place: forms[row * len(places) + i][number] for i, place in enumerate(places)}
            if not all(map(has_words, texts.values())):
                empty += 1
                continue
            whole = tuple(one_word(side) if place in texts else side for place, side in enumerate(own))
            changes = tuple({0: texts[place]} if place in texts else {} for place in range(len(own)))
            variants.append(Variant(row, whole, changes))
    return Planned(variants, {"empty": empty} if empty else {}, asked, seconds, seconds)


def _note(made: Mapping[str, Variants], own: int, keep_labels: bool) -> str:
    counts = ", ".join(f"{name} {one.count:,}" for name, one in made.items())
    reasons = Counter[str]()
    for one in made.values():
        reasons.update(one.dropped)
    total, how = (
        sum(one.count for one in made.values()),
        "with their texts' labels" if keep_labels else "without labels",
    )
    note = f"{total:,} variants of {own:,} texts join train {how}: {counts}"
    losses = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
    return f"{note}; dropped: {losses}" if losses else note


PlannedWords = list[list[tuple[Place, int]]]
"""By number of the variant the words that it alters, each with 64 random bits; empty where no word may be altered."""


def _planned(method: Method, sides: Sequence[Side], key: int) -> PlannedWords:
    places = method.places(sides)
    if not places:
        return []
    planned = []
    for number in range(method.variants):
        picked, draws = chosen(key, method.name, number, len(places), method.share)
        planned.append([(places[i], int(draw)) for i, draw in zip(picked, draws, strict=True)])
    return planned


def chosen(
    key: int, method: str, number: int, count: int, share: float
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Which of `count` words a variant alters, each with chance `share`, and at least one; for each 64 random bits."""
    bits = shake_256(f"{method} {number} {key}".encode()).digest(16 * count)
    draws = np.frombuffer(bits, dtype="<u8").astype(np.uint64).reshape(count, 2)
    uniform = draws[:, 0] / 2.0**64
    picked = np.flatnonzero(uniform < share) if uniform.min() < share else np.array([uniform.argmin()])
    return picked, draws[picked, 1]


def _asked(sides: Sequence[tuple[Side, ...]], planned: Sequence[PlannedWords]) -> dict[str, dict[int, Side]]:
    """The words that some variant alters: by text and index of the word, with the side."""
    asked: dict[str, dict[int, Side]] = {}
    for own, numbers in zip(sides, planned, strict=True):
        for number in numbers:
            for (place, word), _ in number:
                asked.setdefault(own[place].text, {})[word] = own[place]
    return asked


def _changes(
    method: Method, sides: Sequence[Side], planned: Sequence[tuple[Place, int]]
) -> tuple[Changes, ...]:
    changes: tuple[dict[int, str | None], ...] = tuple({} for _ in sides)
    for (place, word), draw in planned:
        options = method.replacements(sides[place], word)
        if options is None:
            changes[place][word] = None
        elif options:
            changes[place][word] = in_case_of(word_of(sides[place], word), options[draw % len(options)])
    for side, own in zip(sides, changes, strict=True):
        if own and not has_words(altered(side, own)):  # all words would be left out
            del own[min(own)]
    return changes


def _fresh(
    data: TaskData, variants: Sequence[Variant], known: NDArray[np.uint64], keep_labels: bool
) -> tuple[Examples, NDArray[np.int64], dict[str, int]]:
    """The variants that no split has and that are not the same as an earlier one, the row of each one's text, and how many
    were dropped, by reason. known: marks of train."""
    task, train = data.task, data.splits["train"]
    if not variants:
        return train.take(np.empty(0, dtype=np.int64)), np.empty(0, dtype=np.int64), {}
    inputs, labels = task.reading.altered(train.inputs, train.labels, variants, keep_labels=keep_labels)
    keys = content_keys(task.kind.name, {role: inputs[role] for role in task.reading.fields})
    examples, rows = Examples(task.name, keys, inputs, labels), np.array([one.row for one in variants])
    own = marks(task.reading.plain(inputs))
    in_train = np.isin(own, known)
    order = np.lexsort((train.keys[rows], np.arange(len(rows)) // max(1, len(np.unique(rows)))))
    fresh = np.zeros(len(rows), dtype=bool)
    fresh[order[np.unique(own[order], return_index=True)[1]]] = True
    held_out = fresh & ~in_train & in_held_out(task.reading, examples, data.splits)
    left = np.flatnonzero(fresh & ~in_train & ~held_out)
    dropped = {
        "as train has them": int(in_train.sum()),
        "duplicates": int((~fresh & ~in_train).sum()),
        "in validation or test": int(held_out.sum()),
    }
    return examples.take(left), rows[left], {reason: count for reason, count in dropped.items() if count}


def _shown(data: TaskData, examples: Examples, rows: NDArray[np.int64]) -> tuple[tuple[str, str], ...]:
    """A few texts with a variant of each: of pairs the sides that differ. The same ones whatever the order."""
    reading, train = data.task.reading, data.splits["train"]
    some = np.argsort(examples.keys, kind="stable")[:SHOWN]
    before = reading.plain(train.take(rows[some]).inputs)
    after = reading.plain(examples.take(some).inputs)
    shown = []
    for old, new in zip(zip(*before, strict=True), zip(*after, strict=True), strict=True):
        differing = [i for i in range(len(old)) if old[i] != new[i]]
        shown.append((" | ".join(old[i] for i in differing), " | ".join(new[i] for i in differing)))
    return tuple(shown)
