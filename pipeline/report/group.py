"""The reports of a group's seeds → group.json and group.md.

`build` computes every number, `markdown` and `verdict` show them. Scores are shares in JSON and points in prose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pipeline.config.schema import RunConfig
from pipeline.report.page import advice_line
from pipeline.report.schema import (
    Advice,
    DeltaRecord,
    GroupAdvice,
    GroupReport,
    GroupSection,
    GroupTask,
    OutcomeRecord,
    Report,
    Section,
    SpreadRecord,
)
from pipeline.shown import (
    NOTHING,
    counted,
    markdown_table,
    p_value,
    percent,
    plus_minus,
    points,
    recovered,
    signed,
)
from pipeline.significance import ALPHA, Outcome, Spread, floor, pairs_needed

HEAD = (
    *("model", "score", "range", "supervised", "Δ", "Δ by seed", "p"),
    *("retention", "gap recovered"),
)


def build(name: str, reports: Sequence[Report]) -> GroupReport:
    """The group's numbers. reports: one for each seed, in the seeds' order."""
    tasks = {}
    for task, first in reports[0].tasks.items():
        sections = [report.tasks[task] for report in reports]
        tasks[task] = GroupTask(
            metric=first.metric,
            teachers={
                teacher: spread_record(Spread(tuple(section.teachers[teacher] for section in sections)))
                for teacher in first.teachers
            },
            **dict(_section(sections)),
        )
    return GroupReport(
        name=name,
        seeds=tuple(report.seed for report in reports),
        runs=tuple(report.name for report in reports),
        tasks=tasks,
        macro=_section([report.macro for report in reports]),
        p_floor=floor(len(reports)),
        advice=_common_advice(reports),
    )


def _common_advice(reports: Sequence[Report]) -> tuple[GroupAdvice, ...]:
    """Advice with the same code and key in more than half of the reports, in the order of its first appearance."""
    given: dict[tuple[str, str], list[tuple[int, Advice]]] = {}
    for report in reports:
        for one in report.advice:
            given.setdefault((one.code, one.key), []).append((report.seed, one))
    return tuple(
        GroupAdvice(**dict(same[0][1]), seeds=tuple(seed for seed, _ in same))
        for same in given.values()
        if 2 * len(same) > len(reports)
    )


def outcome_of(sections: Sequence[Section], student: str) -> Outcome:
    """A student's scores over seeds. sections: the same section (a task's, or macro) of each seed's report."""
    rows = [section.students[student] for section in sections]
    return Outcome.of(
        [row.score for row in rows],
        [row.supervised for row in rows],
        [row.ensemble for row in rows],
    )


def _section(sections: Sequence[Section]) -> GroupSection:
    """One section (a task's, or macro) over seeds."""
    return GroupSection(
        ensemble=spread_record(Spread(tuple(section.ensemble for section in sections))),
        students={name: _outcome(outcome_of(sections, name)) for name in sections[0].students},
    )


def spread_record(spread: Spread) -> SpreadRecord:
    """One number under several seeds, in the layout of the JSON files."""
    return SpreadRecord(
        mean=spread.mean,
        sd=spread.sd,
        lowest=min(spread.by_seed),
        highest=max(spread.by_seed),
        by_seed=spread.by_seed,
    )


def _outcome(outcome: Outcome) -> OutcomeRecord:
    delta = outcome.delta
    assert outcome.ensemble is not None, "a report has one"
    return OutcomeRecord(
        score=spread_record(outcome.score),
        ensemble=spread_record(outcome.ensemble),
        supervised=None if outcome.supervised is None else spread_record(outcome.supervised),
        delta=None if delta is None else DeltaRecord(**dict(spread_record(delta)), p=outcome.p),
        retention=outcome.retention,
        gap_recovered=outcome.gap_recovered,
    )


# ---------------------------------------------------------------- group.md


def markdown(group: GroupReport) -> str:
    """group.md's text."""
    seeds, tasks = group.seeds, group.tasks
    metrics = ", ".join(f"{name}: {task.metric}" for name, task in tasks.items())
    blocks = [
        f"# {group.name}",
        f"{counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))}), a run each: "
        + ", ".join(f"[{run}](../{run}/report.md)" for run in group.runs)
        + ".",
        *verdict(group),
        *_advice_section(group),
        "## All tasks",
        f"Unweighted mean of the tasks' test scores ({metrics}), in points.",
        markdown_table(HEAD, _rows(group.macro)),
    ]
    for name, task in tasks.items():
        blocks += [
            f"## {name}",
            f"Test scores: {task.metric}, in points.",
            markdown_table(HEAD, _rows(task, task.teachers)),
        ]
    return "\n\n".join([*blocks, *_notes(group)]) + "\n"


def verdict(group: GroupReport) -> list[str]:
    """A paragraph in plain words about each student, best first."""
    students = group.macro.students
    ranked = sorted(students, key=lambda name: -students[name].score.mean)
    return [_verdict(name, group) for name in ranked]


def advice_lines(group: GroupReport) -> list[str]:
    """The advice that most seeds have, a line each, with the number of seeds."""
    return [f"{advice_line(one)} ({len(one.seeds)} of {len(group.seeds)} seeds)" for one in group.advice]


def _advice_section(group: GroupReport) -> list[str]:
    lines = advice_lines(group)
    return ["## Advice", "\n".join(f"- {line}" for line in lines)] if lines else []


def _verdict(name: str, group: GroupReport) -> str:
    row = group.macro.students[name]
    ensemble = row.ensemble
    kept = "scores" if row.retention is None else f"keeps {percent(row.retention)} of the ensemble:"
    text = f"**{name}** {kept} {_plus_minus(row.score)} points against {_plus_minus(ensemble)}, over"
    text += f" {counted(len(group.seeds), 'seed')}."
    delta, supervised = row.delta, row.supervised
    if delta is None or supervised is None:
        return f"{text} It has no supervised baseline, so nothing here says what the teachers were worth."
    level = signed(delta.mean) == "0.0"
    where = "above" if delta.mean > 0 else "below"
    how = "level with" if level else f"{points(abs(delta.mean))} points {where}"
    text += f" It is {how} its supervised baseline ({_plus_minus(supervised)}"
    text += ")" if delta.p is None else f"; p {'' if delta.p < 0.001 else '= '}{p_value(delta.p)})"
    if level:
        return f"{text}. Nothing here shows that the teachers helped."
    if delta.p is not None and delta.p < ALPHA:
        return f"{text}: {'here the teachers did harm' if delta.mean < 0 else 'the teachers helped'}."
    if group.p_floor >= ALPHA:
        return f"{text}: too few seeds to tell that from chance."
    return f"{text}: which may be chance."


def _rows(section: GroupSection, teachers: Mapping[str, SpreadRecord] | None = None) -> list[list[str]]:
    """The rows of a section's table, as cells."""
    blank = [NOTHING] * (len(HEAD) - 3)
    above = {**(teachers or {}), "ensemble": section.ensemble}
    rows = [[name, _plus_minus(spread), _range(spread), *blank] for name, spread in above.items()]
    return rows + [[f"**{name}**", *_cells(row)] for name, row in section.students.items()]


def _cells(row: OutcomeRecord) -> list[str]:
    supervised, delta = row.supervised, row.delta
    compared = [NOTHING] * 4
    if delta is not None and supervised is not None:
        by_seed = " ".join(signed(one) for one in delta.by_seed)
        compared = [_plus_minus(supervised), _plus_minus(delta, signed), by_seed, p_value(delta.p)]
    ratios = [percent(row.retention), recovered(row.gap_recovered)]
    return [_plus_minus(row.score), _range(row.score), *compared, *ratios]


def _notes(group: GroupReport) -> list[str]:
    pairs = len(group.seeds)
    notes = [
        "±: standard deviation over the seeds (n − 1). Range: lowest and highest. Δ: student − supervised (the same "
        "student from the same start, trained on labels alone). Retention and gap recovered are of the means.",
        "p: two-sided sign-flip permutation test of Δ over the paired seeds: the share of all choices of signs whose "
        "mean is as far from 0. It covers the choice of the seed, not of the test examples (each run's report.md has "
        "that error), and is not corrected for several students and tasks.",
    ]
    if pairs < pairs_needed():
        notes.append(
            f"With {counted(pairs, 'pair')} p cannot fall below {p_value(group.p_floor)}: "
            f"p < {ALPHA} needs {pairs_needed()}, and 8 if one of them may disagree."
        )
    return notes


def _plus_minus(values: SpreadRecord, show: Callable[[float], str] = points) -> str:
    return plus_minus(Spread(values.by_seed), show)


def _range(values: SpreadRecord) -> str:
    low, high = points(values.lowest), points(values.highest)
    return low if low == high else f"{low}-{high}"


def seed_notes(config: RunConfig) -> list[str]:
    """What a run per seed comes to; nothing where there is but one."""
    if not config.seeds:
        return []
    pairs, seeds = len(config.seeds), ", ".join(map(str, config.seeds))
    line = f"seeds {seeds}: one run each, {config.name_of_seed(config.seeds[0])} and so on"
    if pairs < pairs_needed():
        line += f"; over {pairs} no test can give p below {floor(pairs):.2g}, take 8 to show p < {ALPHA}"
    return [line]
