"""A study's trials → study.json, study.md, trials.csv, figures; the live table of trials."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from pipeline.config.schema import RunConfig
from pipeline.display.wide_table import Field, WideTable
from pipeline.files import write_atomically
from pipeline.report.page import links_section
from pipeline.report.schema import GroupReport, GroupSection, OnTest, ScoresOnTest, StudyReport, to_json
from pipeline.run_folder import FIGURES, STUDY, STUDY_PAGE
from pipeline.shown import NOTHING, markdown_table, measured, p_value, percent, plus_minus, points, signed
from pipeline.significance import Spread, floor, sign_flip_p
from tune.importance import importance
from tune.space import modes, student_of
from tune.study import Trial, best, records

TRIALS = "trials.csv"
MARKS = {
    "finished": "green",
    "early-stopped": "dim",
    "failed": "red",
    "interrupted": "yellow",
    "running": "cyan",
}


@dataclass(frozen=True)
class Facts:
    """The measurements of a study beside its trials.

    ensemble: validation scores of the teachers together, by ``macro/score`` and ``<task>/<metric>`` · forwards: by
    teacher, examples that it predicted in this launch · needed: by teacher, soft targets that the study reads ·
    curves: by trial, validation lines of metrics.jsonl · timings_s: seconds by stage, over all launches.
    """

    ensemble: Mapping[str, float]
    forwards: Mapping[str, int]
    needed: Mapping[str, int]
    curves: Mapping[int, Sequence[Mapping[str, Any]]]
    timings_s: Mapping[str, float]


# ---------------------------------------------------------------- while it runs


def live_table(trials: Sequence[Trial], metrics: Sequence[str]) -> WideTable:
    """The trials so far, for a terminal."""
    paths = list(trials[0].values) if trials else []
    fields = [
        Field("trial", [str(trial.number) for trial in trials], key=True),
        Field("status", [Text(trial.status, style=MARKS[trial.status]) for trial in trials], True, key=True),
    ]
    fields += [
        Field(path, [shown(trial.values.get(path, NOTHING)) for trial in trials], group="settings")
        for path in paths
    ]
    fields += [
        Field(
            metric,
            [
                measured(metric, trial.scores[metric]) if metric in trial.scores else NOTHING
                for trial in trials
            ],
            group="scores",
        )
        for metric in metrics
    ]
    fields += [
        Field("epochs", [str(trial.epochs) for trial in trials], group="cost"),
        Field("s", [f"{trial.seconds:.0f}" for trial in trials], group="cost"),
    ]
    return WideTable(fields)


def trial_line(trial: Trial, metrics: Sequence[str]) -> str:
    """One line about a trial that ended."""
    scores = [f"{one} {measured(one, trial.scores[one])}" for one in metrics if one in trial.scores]
    values = ", ".join(f"{path}={shown(value)}" for path, value in trial.values.items())
    why = f" ({trial.error})" if trial.error else ""
    return f"trial {trial.number}: {trial.status}{why}, {', '.join([*scores, f'{trial.epochs} epochs'])} · {values}"


def shown(value: Any) -> str:
    """A searched value as text: floats with 4 digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def retention(scores: Mapping[str, float], ensemble: Mapping[str, float]) -> dict[str, float]:
    """Validation scores ÷ the ensemble's, as ``retention/macro`` and ``retention/<task>``."""
    return {
        f"retention/{name.split('/')[0]}": scores[name] / whole
        for name, whole in ensemble.items()
        if name in scores and whole > 0
    }


# ---------------------------------------------------------------- numbers


def build(config: RunConfig, name: str, trials: Sequence[Trial], facts: Facts) -> StudyReport:
    """The contents of study.json before the winner is trained again and scored on test."""
    tune = config.tune
    assert tune is not None, "`tune.space.checked` comes first"
    forwards, needed = sum(facts.forwards.values()), sum(facts.needed.values())
    return StudyReport(
        name=name,
        student=student_of(config),
        metrics=tuple(tune.metrics),
        modes=tuple(modes(config)),
        space={path: one.model_dump(mode="json") for path, one in tune.space.items()},
        algorithm=tune.algorithm,
        scheduler=tune.scheduler,
        trials=records(trials, tune.metrics, modes(config)),
        ensemble=facts.ensemble,
        importance=importance(tune, trials, tune.metrics[0]),
        teacher_forwards=facts.forwards,
        soft_targets=facts.needed,
        forwards_ratio=forwards / needed if needed else None,
        timings_s=facts.timings_s,
    )


def tested(default: GroupReport, winner: GroupReport, student: str) -> OnTest:
    """Test scores of the default weights and of the winner, each beside its own supervised baseline.

    default, winner: the same student under the same seeds. A baseline is trained with the settings of its student,
    so default and winner have different ones. By ``macro`` and task: scores by seed, the mean gain of the winner over
    the default, and the p-value of its sign-flip test.
    """
    sections: dict[str, tuple[GroupSection, GroupSection]] = {"macro": (default.macro, winner.macro)}
    sections |= {task: (section, winner.tasks[task]) for task, section in default.tasks.items()}
    rows = {}
    for name, (before, after) in sections.items():
        old, new = before.students[student], after.students[student]
        gains = [b - a for a, b in zip(old.score.by_seed, new.score.by_seed, strict=True)]
        rows[name] = ScoresOnTest(
            default=old.score.by_seed,
            default_supervised=old.supervised.by_seed if old.supervised else None,
            best=new.score.by_seed,
            best_supervised=new.supervised.by_seed if new.supervised else None,
            ensemble=before.ensemble.by_seed,
            gain=sum(gains) / len(gains),
            p=sign_flip_p(gains) if len(gains) > 1 else None,
        )
    return OnTest(seeds=default.seeds, runs=(*default.runs, *winner.runs), scores=rows)


# ---------------------------------------------------------------- files


def write(
    config: RunConfig,
    folder: Path,
    trials: Sequence[Trial],
    facts: Facts,
    links: Mapping[str, str] | None = None,
) -> tuple[StudyReport, list[Path]]:
    """Writes study.json, study.md, trials.csv and figures/*.png; returns the contents of study.json, and the files.

    links: see `pipeline.report.page.links_section`.
    """
    from tune import figures  # brings in matplotlib

    tune = config.tune
    assert tune is not None, "`tune.space.checked` comes first"
    study = build(config, folder.name, trials, facts)
    directions = modes(config)
    winner = best(trials, tune.metrics, directions)
    tasks = [name for name in facts.ensemble if name != "macro/score"]
    drawn = figures.draw(
        tune=tune,
        mode=directions[0],
        trials=trials,
        winner=winner,
        importance=study.importance,
        curves=facts.curves,
        task_metrics=tasks,
    )
    files = [write_atomically(folder / FIGURES / name, png) for name, png in drawn.items()]
    write_atomically(folder / TRIALS, to_csv(study))
    return study, [*files, folder / TRIALS, *write_page(study, folder, links)]


def write_page(study: StudyReport, folder: Path, links: Mapping[str, str] | None = None) -> list[Path]:
    """Writes study.md and, last, study.json; returns both files. links: see `pipeline.report.page.links_section`."""
    pictures = sorted(file.name for file in (folder / FIGURES).glob("*.png"))
    write_atomically(folder / STUDY_PAGE, markdown(study, pictures, links))
    write_atomically(folder / STUDY, to_json(study))
    return [folder / STUDY_PAGE, folder / STUDY]


def to_csv(study: StudyReport) -> str:
    """The text of trials.csv: one line a trial, scores as shares with all digits."""
    paths = list(study.space)
    names = list(dict.fromkeys(name for trial in study.trials for name in trial.scores))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    facts = ("number", "status", "best", "pareto", "epochs", "seconds", "failures", "error")
    writer.writerow([*facts, *paths, *names])
    for trial in study.trials:
        own = [getattr(trial, name) for name in facts]
        values = [trial.values.get(path) for path in paths]
        writer.writerow([*own, *values, *(trial.scores.get(name) for name in names)])
    return text.getvalue()


# ---------------------------------------------------------------- study.md


def markdown(study: StudyReport, pictures: Sequence[str], links: Mapping[str, str] | None = None) -> str:
    """The text of study.md. pictures: names of the files under figures/ · links: see `write_page`."""

    def picture(name: str, caption: str) -> list[str]:
        return [f"![{caption}](figures/{name})"] if name in pictures else []

    blocks = [f"# {study.name}", *verdict(study), *_bought(study), "## Trials", _trials(study)]
    blocks += picture("parallel.png", "Values and scores of the trials")
    if study.importance:
        blocks += ["## What mattered", *picture("importance.png", "Importance of each value")]
        blocks += [
            "How much of the score's variance over these trials each value explains: few trials, a rough guess."
        ]
    if "pareto.png" in pictures:
        blocks += [
            "## One task against another",
            *picture("pareto.png", "Pareto front of every pair of tasks"),
        ]
    if "curves.png" in pictures:
        blocks += ["## Learning curves", *picture("curves.png", "Validation score by epoch")]
    blocks += ["## Cost", *_cost(study), *picture("cost.png", "Seconds a trial"), *links_section(links)]
    return "\n\n".join(blocks) + "\n"


def verdict(study: StudyReport) -> list[str]:
    """The paragraphs at the head of study.md: how the trials ended, the winner, and its gain on test."""
    counts: dict[str, int] = {}
    for trial in study.trials:
        counts[trial.status] = counts.get(trial.status, 0) + 1
    ended = ", ".join(f"{count} {status}" for status, count in counts.items())
    winner = study.winner
    lead = f"{len(study.trials)} trials of **{study.student}**: {ended or 'none had begun'}."
    if winner is None:
        return [f"{lead} None of them has a score." if counts else lead]
    scores = ", ".join(f"{one} {measured(one, winner.scores[one])}" for one in study.metrics)
    values = ", ".join(f"`{path}` {shown(value)}" for path, value in winner.values.items())
    front = sum(trial.pareto for trial in study.trials)
    many = f"of {front} on the Pareto front that with the highest macro score"
    place = many if front > 1 else "alone on the Pareto front"
    which = f", {place}," if _several(study) else ""
    paragraphs = [f"{lead} The winner{which} is trial {winner.number}, {scores} on validation: {values}."]
    if study.scheduler == "pbt":
        paragraphs.append(
            "Values of a population change on the way, weights pass from trial to trial: shown are each trial's last "
            "values. `best.yaml` trains with the winner's from the start, which need not give its score again."
        )
    if study.test is not None:
        paragraphs += [_gain(study.test), _gain_from_teachers(study.test)]
    return paragraphs


def _several(study: StudyReport) -> bool:
    """Whether the search was for a Pareto front."""
    return len(study.metrics) > 1


def _gain(test: OnTest) -> str:
    """A sentence on the winner's gain over the default weights on test."""
    macro, seeds = test.scores["macro"], len(test.seeds)
    gain, over = signed(macro.gain), f"over {seeds} seeds" if seeds > 1 else "with one seed"
    means = [plus_minus(Spread(one)) for one in (macro.best, macro.default)]
    text = f"On test, {over}, it scores {means[0]} where the default weights score {means[1]}: "
    if gain == "0.0":
        return f"{text}the search bought nothing."
    if gain.startswith("−"):
        return f"{text}the search bought nothing, its winner is {gain.removeprefix('−')} points below them."
    chance = f" (p {p_value(macro.p)}; {seeds} pairs cannot give less than {p_value(floor(seeds))})"
    return f"{text}the search bought {gain} points{chance if seeds > 1 else ', which one seed cannot tell from chance'}."


def _gain_from_teachers(test: OnTest) -> str:
    """Sentences on the gain from the teachers: default and winner, each beside the same settings trained on labels alone."""
    macro, seeds = test.scores["macro"], len(test.seeds)
    models = (
        ("the student of the default weights is", macro.default, macro.default_supervised),
        ("that of the winner is", macro.best, macro.best_supervised),
    )
    parts = [
        f"{who} {_beside(scores, supervised)}" for who, scores, supervised in models if supervised is not None
    ]
    if not parts:
        return "Without a supervised baseline nothing here says what the teachers were worth."
    text = f"Beside the same settings trained on labels alone, {' and '.join(parts)}."
    if macro.best_supervised is None:
        return text
    deltas = [score - base for score, base in zip(macro.best, macro.best_supervised, strict=True)]
    sure = f"p {p_value(sign_flip_p(deltas))}" if seeds > 1 else "one seed cannot tell that from chance"
    worth = signed(statistics.fmean(deltas))
    if worth == "0.0":
        return f"{text} With the winner's settings nothing shows that the teachers help ({sure})."
    if worth.startswith("−"):
        return f"{text} With the winner's settings labels alone do better than the teachers ({sure})."
    return f"{text} With the winner's settings the teachers are worth {worth} points ({sure})."


def _beside(scores: Sequence[float], supervised: Sequence[float]) -> str:
    """`3.7 points above its supervised baseline (58.0)`: the means of both, by seed."""
    delta = statistics.fmean(scores) - statistics.fmean(supervised)
    base = points(statistics.fmean(supervised))
    if signed(delta) == "0.0":
        return f"level with its supervised baseline ({base})"
    where = "above" if delta > 0 else "below"
    return f"{points(abs(delta))} points {where} its supervised baseline ({base})"


def _bought(study: StudyReport) -> list[str]:
    if study.test is None:
        return []
    rows = []
    for name, one in study.test.scores.items():
        columns = (one.default, one.default_supervised, one.best, one.best_supervised, one.ensemble)
        spreads = [None if scores is None else Spread(scores) for scores in columns]
        rows.append([name, *map(plus_minus, spreads), signed(one.gain), p_value(one.p)])
    runs = ", ".join(f"[{run}](../{run}/report.md)" for run in study.test.runs)
    return [
        "## What the search bought",
        markdown_table(["on test", *COMPARED, "Δ", "p"], rows),
        "Points, mean ± standard deviation over the seeds. Searched: the winner, trained again from `best.yaml`. "
        "Supervised: the same student with the same settings, trained on labels alone. "
        f"Δ: searched − default, p by the paired sign-flip test. Runs: {runs}.",
    ]


COMPARED = ("default", "default, supervised", "searched", "searched, supervised", "ensemble")


def _trials(study: StudyReport) -> str:
    paths, metrics = list(study.space), study.metrics
    rows = []
    for trial in study.trials:
        mark = "**" if trial.best else ""
        scores = [measured(one, trial.scores[one]) if one in trial.scores else NOTHING for one in metrics]
        front = ["yes" if trial.pareto else NOTHING] if _several(study) else []
        values = [shown(trial.values.get(path, NOTHING)) for path in paths]
        ended = trial.status + (f": {trial.error}" if trial.error else "")
        own = [text.replace("|", "\\|") for text in (f"{mark}{trial.number}{mark}", ended, *values)]
        rows.append([*own, *scores, *front, str(trial.epochs), f"{trial.seconds:.0f}"])
    head = ["trial", "ended", *paths, *metrics, *(["Pareto"] if _several(study) else []), "epochs", "seconds"]
    return markdown_table(head, rows, words=2)


def _cost(study: StudyReport) -> list[str]:
    trials, forwards = len(study.trials), sum(study.teacher_forwards.values())
    needed = sum(study.soft_targets.values())
    ratio = NOTHING if study.forwards_ratio is None else f"{study.forwards_ratio:.2f}"
    spent = sum(trial.seconds for trial in study.trials)
    labelled = [
        [name, f"{count:,}", f"{study.soft_targets[name]:,}"]
        for name, count in study.teacher_forwards.items()
    ]
    return [
        markdown_table(["teacher", "examples run this time", "soft targets needed"], labelled),
        f"Teacher forwards ÷ (examples × teachers): {ratio}, for {trials} trials: all read the same {needed:,} soft "
        f"targets, {forwards:,} of them computed by this command. {spent:.0f} seconds went into trials, counting "
        f"those side by side one after another. Ensemble on validation: {percent(study.ensemble['macro/score'])} macro.",
    ]
