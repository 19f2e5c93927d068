"""The rounds of a config side by side → rounds.json and rounds.md.

`build` computes every number, `markdown` and `verdict` show them. Scores are shares in JSON and points in prose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.config.schema import RunConfig
from pipeline.report.group import spread_record
from pipeline.report.schema import VERSION, DeltaRecord, Record, Report, SpreadRecord, Version
from pipeline.shown import NOTHING, markdown_table, p_value, plus_minus, points, signed
from pipeline.significance import ALPHA, Spread, floor, sign_flip_p


class RoundTask(Record):
    """A student's scores on one task, or their mean over its tasks, after one round."""

    validation: SpreadRecord
    test: SpreadRecord
    gain: DeltaRecord
    """Test score − that after round 0."""


class RoundRecord(Record):
    """One round of one student."""

    runs: tuple[str, ...]
    """Names of the runs, one a seed, whose folders lie beside the rounds'."""
    macro: RoundTask
    tasks: Mapping[str, RoundTask]
    standard_error: float | None
    """Of the macro test score over the choice of test examples; null for several seeds."""
    seconds: Mapping[str, float]
    """Seconds of the round by stage, mean over the seeds, all students together: `write` is the students' own texts and predictions, `score`
    the teachers along them."""


class StudentRounds(Record):
    """All rounds of one student, round 0 first."""

    kept: int
    """Number of the round with the best validation score."""
    rounds: tuple[RoundRecord, ...]


class RoundsReport(Record):
    """rounds.json: the rounds of one config."""

    report_version: Version = VERSION
    """Layout of this file."""
    name: str
    seeds: tuple[int, ...]
    metrics: Mapping[str, str]
    """The metric of each task."""
    students: Mapping[str, StudentRounds]


@dataclass(frozen=True)
class Made:
    """One finished round. reports: one a seed · validation: by student the scores of the weights kept, by ``<task>/<metric>`` and
    ``macro/score``, one mapping a seed."""

    reports: Sequence[Report]
    validation: Mapping[str, Sequence[Mapping[str, float]]]

    def score(self, student: str) -> float:
        """A student's validation score, the mean over seeds."""
        return Spread(tuple(one["macro/score"] for one in self.validation[student])).mean


def best_round(scores: Sequence[float]) -> int:
    """The first round with the highest score."""
    return max(range(len(scores)), key=lambda number: scores[number])


def still_rising(made: Sequence[Made]) -> list[str]:
    """The students whose last round's validation score is above that of all rounds before it; of round 0 alone all of them."""
    return [
        student
        for student in made[-1].validation
        if best_round([one.score(student) for one in made]) == len(made) - 1
    ]


def build(name: str, made: Sequence[Made]) -> RoundsReport:
    """All numbers. made: round 0 first; a round has those students alone that were still rising."""
    first = made[0].reports[0]
    return RoundsReport(
        name=name,
        seeds=tuple(report.seed for report in made[0].reports),
        metrics={task: own.metric for task, own in first.tasks.items()},
        students={
            student: _student(student, [one for one in made if student in one.validation])
            for student in made[0].validation
        },
    )


def _student(student: str, made: Sequence[Made]) -> StudentRounds:
    return StudentRounds(
        kept=best_round([one.score(student) for one in made]),
        rounds=tuple(_round(student, one, made[0]) for one in made),
    )


def _round(student: str, one: Made, first: Made) -> RoundRecord:
    reports, tasks = one.reports, one.reports[0].tasks_of(student)
    error = reports[0].macro.standard_errors.students[student] if len(reports) == 1 else None

    def section(key: str, task: str | None) -> RoundTask:
        test, before = (_test_scores(some.reports, student, task) for some in (one, first))
        differences = tuple(b - a for a, b in zip(before, test, strict=True))
        p = sign_flip_p(differences) if len(differences) > 1 else None
        return RoundTask(
            validation=spread_record(Spread(tuple(scores[key] for scores in one.validation[student]))),
            test=spread_record(Spread(test)),
            gain=DeltaRecord(**dict(spread_record(Spread(differences))), p=p),
        )

    stages = dict.fromkeys(stage for report in reports for stage in report.timings_s)
    return RoundRecord(
        runs=tuple(report.name for report in reports),
        macro=section("macro/score", None),
        tasks={task: section(f"{task}/{own.metric}", task) for task, own in tasks.items()},
        standard_error=error,
        seconds={
            stage: Spread(tuple(report.timings_s.get(stage, 0.0) for report in reports)).mean
            for stage in stages
        },
    )


def _test_scores(reports: Sequence[Report], student: str, task: str | None) -> tuple[float, ...]:
    sections = [report.macro if task is None else report.tasks[task] for report in reports]
    return tuple(section.students[student].score for section in sections)


# ---------------------------------------------------------------- rounds.md


def markdown(report: RoundsReport) -> str:
    """rounds.md's text."""
    metrics = ", ".join(f"{task}: {metric}" for task, metric in report.metrics.items())
    blocks = [f"# {report.name}", *verdict(report)]
    for student, own in report.students.items():
        folders = [f"{run}/students/{student}" for run in own.rounds[own.kept].runs]
        blocks += [
            f"## {student}",
            f"Kept: {', '.join(f'[{one}](../{one})' for one in folders)}. Scores in points ({metrics}).",
            markdown_table(_head(own), [_row(number, own) for number in range(len(own.rounds))]),
        ]
    return "\n\n".join([*blocks, *_notes(report)]) + "\n"


def verdict(report: RoundsReport) -> list[str]:
    """A paragraph in plain words about each student."""
    return [_verdict(student, own, len(report.seeds)) for student, own in report.students.items()]


def _verdict(student: str, own: StudentRounds, seeds: int) -> str:
    kept, first = own.rounds[own.kept], own.rounds[0]
    validation = f"{points(kept.macro.validation.mean)} against {points(first.macro.validation.mean)}"
    made = f"{len(own.rounds) - 1} round{'' if len(own.rounds) == 2 else 's'}"
    if not own.kept:
        return f"**{student}** keeps round 0: {made} after it did not raise its validation score ({points(first.macro.validation.mean)})."
    gain = kept.macro.gain
    text = f"**{student}** keeps round {own.kept} of {made}: on validation {validation}, on test {_shown(kept.macro.test)} against "
    text += f"{_shown(first.macro.test)} after round 0 ({_shown(gain, change=True)}"
    if gain.p is None:
        return f"{text}; one seed, standard error of a score {points(kept.standard_error or 0.0)})."
    text += f"; p {'' if gain.p < 0.001 else '= '}{p_value(gain.p)})"
    if gain.p < ALPHA:
        return f"{text}: the rounds {'helped' if gain.mean > 0 else 'did harm'}."
    return f"{text}: {'too few seeds to tell that from chance' if floor(seeds) >= ALPHA else 'which may be chance'}."


def _head(own: StudentRounds) -> list[str]:
    head = ["round", "validation", "test", "gain", "p"]
    tasks = list(own.rounds[0].tasks)
    if len(tasks) > 1:
        head += [f"{task} {split}" for task in tasks for split in ("validation", "test")]
    return [*head, "write s", "score s", "train s"]


def _row(number: int, own: StudentRounds) -> list[str]:
    one = own.rounds[number]
    name = f"{number} ({', '.join(f'[{run}](../{run}/report.md)' for run in one.runs)})"
    gain = one.macro.gain
    cells = [f"**{name}**, kept" if number == own.kept else name]
    cells += [_shown(one.macro.validation), _shown(one.macro.test)]
    cells += [_shown(gain, change=True), p_value(gain.p)] if number else [NOTHING, NOTHING]
    if len(one.tasks) > 1:
        for task in one.tasks.values():
            cells += [_shown(task.validation), _shown(task.test)]
    return [*cells, *(_seconds(one.seconds.get(stage)) for stage in ("write", "score", "train"))]


def _notes(report: RoundsReport) -> list[str]:
    return [
        "The round that is kept is the first one with the best validation score; test takes no part in that. Rounds end after the first one "
        "that does not raise it. Gain: test score − that after round 0"
        + (
            ", ±: standard deviation over the seeds; p: sign-flip test over the paired seeds."
            if len(report.seeds) > 1
            else "."
        ),
        "Seconds are of all students of the round: writing (and predicting) what they learn from themselves, scoring it by the teachers, "
        "training (in round 0 with the baselines).",
    ]


def round_notes(config: RunConfig) -> list[str]:
    """What a config in rounds comes to, or which round it is; nothing where there are none."""
    rounds = config.rounds
    if rounds is None:
        return []
    if rounds.after is not None:
        return [
            f"a round after {rounds.after}: each student learns from itself there as well, share {rounds.share:g}"
        ]
    runs = "groups" if config.seeds else "runs"
    return [
        f"rounds: {runs} {config.name_of_round(0)} to {config.name_of_round(rounds.count)}, fewer where validation no longer rises"
    ]


def _shown(values: SpreadRecord, change: bool = False) -> str:
    return plus_minus(Spread(values.by_seed), signed if change else points)


def _seconds(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{seconds:,.0f}"
