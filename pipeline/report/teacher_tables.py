"""The teachers of a task as `tutelage teachers` prints them: worth and disagreement, as tables and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text

from pipeline.config.kinds import SKILL
from pipeline.display.wide_table import Field, WideTable
from pipeline.report.disagreement import Disagreement, disagreement
from pipeline.report.ensembles import TaskTeachers, ensemble_notes
from pipeline.report.worth import TaskWorth, Worth, task_worth
from pipeline.shown import NOTHING, percent, points, signed
from pipeline.tasks.resampled import LEVEL, Difference, Sample

SHOWN_LABELS = 10
LONGEST_TEXT = 120
"""Characters of an example that are shown."""


def teacher_tables(teachers: TaskTeachers, size: int) -> Iterator[WideTable | Text]:
    """Tables of one task and lines between them. size: examples of the whole validation split."""
    worth, count = task_worth(teachers), len(teachers.validation)
    yield _worth_table(teachers, worth, size)
    yield Text("\n".join(worth_lines(teachers.task.scoring.metric, worth, count)))
    if len(teachers.predictions) < 2:
        return
    where = disagreement(teachers)
    yield _agreement_table(where, "Correlation" if teachers.task.kind.continuous else "Agreement")
    if where.labels:
        yield _label_table(where)
    if where.examples:
        yield _example_table(where, "difference" if teachers.task.kind.continuous else "divergence")


def worth_lines(metric: str, worth: TaskWorth, count: int) -> list[str]:
    """A sentence for each teacher, and one on the best weights. count: examples that all scores are from."""
    if len(worth.teachers) == 1:
        return [f"{next(iter(worth.teachers))} is the only teacher: there is nothing to leave out."]
    lines = [
        f"{name}: {_worth_words(metric, one, count)}{_label_words(one)}"
        for name, one in worth.teachers.items()
    ]
    return [*lines, _best_line(metric, worth, count)]


def _worth_words(metric: str, one: Worth, count: int) -> str:
    if not one.weight:
        return "weight 0, it is not in the ensemble."
    if one.metric is None:
        return "no other teacher has any weight: there is nothing to leave out."
    parts = [(metric, one.metric), *([(SKILL, one.skill)] if one.skill else [])]
    clear = [(name, value) for name, value in parts if value.measurable]
    if not clear:
        return f"no measurable difference on {count:,} validation examples."
    words = " and ".join(
        f"{signed(value.mean)} points of {name} ({_interval(value)})" for name, value in clear
    )
    rest = " and ".join(name for name, value in parts if not value.measurable)
    more = f"; no measurable difference in {rest} on {count:,} validation examples" if rest else ""
    harm = "; the ensemble is better without it" if all(value.mean < 0 for _, value in clear) else ""
    return f"worth {words}{harm}{more}."


def _label_words(one: Worth) -> str:
    lacks = (
        f" It lacks {', '.join(one.lacks)}: alone it has no skill, and disagrees there." if one.lacks else ""
    )
    orphans = f" Without it no teacher has {', '.join(one.orphans)}." if one.orphans else ""
    return lacks + orphans


def _best_line(metric: str, worth: TaskWorth, count: int) -> str:
    best = worth.best
    assert best is not None, "there are several teachers"
    weights = ", ".join(f"{name} {weight:g}" for name, weight in best.weights.items())
    line = f"best weights on validation: {weights}: {points(best.scores.metric.score)} {metric}, "
    if not best.gain.measurable:
        return f"{line}no measurable difference on {count:,} validation examples."
    return (
        f"{line}{signed(best.gain.mean)} ({_interval(best.gain)}). They were chosen on these examples: "
        "expect less elsewhere."
    )


def _interval(value: Difference) -> str:
    """`+0.4 to +2.1`, in points."""
    return " to ".join(map(signed, value.interval))


def _cell(value: Difference | None) -> str:
    return NOTHING if value is None else f"{signed(value.mean)} ({_interval(value)})"


def _score(sample: Sample | None) -> str:
    return NOTHING if sample is None else points(sample.score)


def _worth_table(teachers: TaskTeachers, worth: TaskWorth, size: int) -> WideTable:
    """One line a teacher, and one for the ensemble."""
    metric, strategy = teachers.task.scoring.metric, teachers.strategy
    own, used = list(worth.teachers.values()), len(teachers.validation)
    sample = f"{used:,}" if used == size else f"{used:,} of {size:,}"
    fields = [
        Field("teacher", ["ensemble", *worth.teachers], words=True, key=True),
        Field("weight", ["", *(f"{one.weight:.2f}" for one in own)]),
    ]
    for name, of in ((metric, "metric"), (SKILL, "skill")):
        alone = [getattr(one, of) for one in (worth.ensemble, *(one.alone for one in own))]
        without = [None if one.without is None else getattr(one.without, of) for one in own]
        fields += [
            Field(name, [_score(one) for one in alone], group=of),
            Field("ensemble without it", ["", *map(_score, without)], group=of),
            Field(f"worth in {name}", ["", *(_cell(getattr(one, of)) for one in own)], group=of),
        ]
    notes = [f"Note: {note}." for note in ensemble_notes(strategy, len(own))]
    smooth = "mean chrF of single texts" if teachers.task.kind.writes else "share of the log-loss explained"
    caption = (
        f"In points. Worth: the ensemble minus the ensemble without the teacher, with the {LEVEL:.0%} interval over "
        f"examples. {SKILL}: {smooth}."
    )
    title = f"{teachers.task.name}: teachers on {sample} validation examples, aggregation {strategy}"
    return WideTable(fields, title, "\n".join([caption, *notes]))


def _agreement_table(where: Disagreement, title: str) -> WideTable:
    names = list(where.agreement)
    return WideTable(
        [
            Field("teacher", names, words=True, key=True),
            *(
                Field(
                    other,
                    [percent(where.agreement[name].get(other)) for name in names],
                )
                for other in names
            ),
        ],
        title,
    )


def _label_table(where: Disagreement) -> WideTable:
    shown = where.labels[:SHOWN_LABELS]
    left = len(where.labels) - len(shown)
    columns: Mapping[str, Sequence[str]] = {
        "gold label": [one.label for one in shown],
        "occurrences": [f"{one.gold:,}" for one in shown],
        "disputed": [f"{one.disputed:,}" for one in shown],
        "share": [percent(one.share) for one in shown],
    }
    return WideTable(
        [
            Field(head, cells, words=head == "gold label", key=head == "gold label")
            for head, cells in columns.items()
        ],
        "Where teachers disagree, by gold label",
        f"and {left} more labels" if left else "",
    )


def _example_table(where: Disagreement, apart: str) -> WideTable:
    examples = where.examples
    texts = [
        one.text if len(one.text) <= LONGEST_TEXT else f"{one.text[:LONGEST_TEXT]} …" for one in examples
    ]
    return WideTable(
        [
            Field("text", texts, words=True, key=True),
            Field("gold", [one.gold for one in examples], words=True),
            *(
                Field(name, [one.answers[name] for one in examples], words=True)
                for name in examples[0].answers
            ),
            Field(apart, [f"{one.apart:.2f}" for one in examples]),
        ],
        "Examples on which teachers are furthest apart",
    )
