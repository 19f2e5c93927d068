"""A study's trials → study.json, study.md, trials.csv, figures; the live table of trials."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.text import Text

from pipeline.config.kinds import SKILL
from pipeline.config.schema import RunConfig
from pipeline.display.wide_table import Field, WideTable
from pipeline.files import write_atomically
from pipeline.report.json_file import to_json
from pipeline.report.page import links_section
from pipeline.report.schema import (
    ChoiceRecord,
    GainRecord,
    GroupReport,
    GroupSection,
    OnTest,
    ScoresOnTest,
    StudyReport,
)
from pipeline.run_folder import FIGURES, STUDY, STUDY_PAGE
from pipeline.shown import NOTHING, markdown_table, measured, p_value, percent, plus_minus, points, signed
from pipeline.significance import Spread, floor, sign_flip_p
from tune.choice import Gain
from tune.finals import Choice
from tune.importance import importance
from tune.space import modes, student_of
from tune.study import DEFAULT, Trial, records

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
    curves: by trial, validation lines of metrics.jsonl · timings_s: seconds by stage, over all launches · gains: of
    finished trials over the default, by number · choice: the outcome of the finals, if there were any · winner: the
    number of the winning trial, or `DEFAULT`.
    """

    ensemble: Mapping[str, float]
    forwards: Mapping[str, int]
    needed: Mapping[str, int]
    curves: Mapping[int, Sequence[Mapping[str, Any]]]
    timings_s: Mapping[str, float]
    gains: Mapping[int, Gain] = field(default_factory=dict)
    choice: Choice | None = None
    winner: int | None = None


# ---------------------------------------------------------------- while it runs


def live_table(trials: Sequence[Trial], metrics: Sequence[str], gains: Mapping[int, Gain]) -> WideTable:
    """The trials so far, for a terminal. gains: over the default, by number; the column is there once one is known."""
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
    if gains:
        fields.append(Field("gain", [_gain_of(gains.get(trial.number)) for trial in trials], group="scores"))
    fields += [
        Field("epochs", [str(trial.epochs) for trial in trials], group="cost"),
        Field("s", [f"{trial.seconds:.0f}" for trial in trials], group="cost"),
    ]
    return WideTable(fields)


def trial_line(trial: Trial, metrics: Sequence[str], gain: Gain | None = None) -> str:
    """One line about a training that ended. gain: over the default."""
    scores = [f"{one} {measured(one, trial.scores[one])}" for one in metrics if one in trial.scores]
    if gain is not None:
        scores.append(f"{_gain_of(gain)} to the default")
    values = ", ".join(f"{path}={shown(value)}" for path, value in trial.values.items())
    why = f" ({trial.error})" if trial.error else ""
    name = f"trial {trial.number}"
    if trial.repeats is not None:
        name = f"{'the default' if trial.repeats == DEFAULT else f'trial {trial.repeats}'}, seed {trial.seed}"
    return f"{name}: {trial.status}{why}, {', '.join([*scores, f'{trial.epochs} epochs'])} · {values}"


def _gain_of(gain: Gain | GainRecord | None) -> str:
    """`+1.2 ± 0.6`: a gain with its standard error, in points."""
    return NOTHING if gain is None else f"{signed(gain.mean)} ± {points(gain.error)}"


def shown(value: Any) -> str:
    """A searched value as text: floats with 4 digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def retention(scores: Mapping[str, float], ensemble: Mapping[str, float]) -> dict[str, float]:
    """Validation scores ÷ the ensemble's, as ``retention/macro`` and ``retention/<task>``."""
    return {
        f"retention/{name.split('/')[0]}": scores[name] / whole
        for name, whole in ensemble.items()
        if name in scores and whole > 0 and not name.endswith(f"/{SKILL}")
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
        folds=tune.folds,
        trials=records(
            trials,
            tune.metrics,
            modes(config),
            facts.winner,
            {number: _record(gain) for number, gain in facts.gains.items()},
        ),
        ensemble=facts.ensemble,
        importance=importance(tune, trials, tune.metrics[0]),
        teacher_forwards=facts.forwards,
        soft_targets=facts.needed,
        forwards_ratio=forwards / needed if needed else None,
        timings_s=facts.timings_s,
        choice=None if facts.choice is None else _choice(facts.choice),
    )


def _record(gain: Gain) -> GainRecord:
    return GainRecord(mean=gain.mean, error=gain.error, lowest=gain.lowest, by_chance=gain.by_chance)


def _choice(choice: Choice) -> ChoiceRecord:
    default, winner = (None if one == DEFAULT else one for one in (choice.default, choice.winner))
    gains = {number: _record(gain) for number, gain in choice.gains.items()}
    return ChoiceRecord(default=default, winner=winner, stays=choice.stays, seeds=choice.seeds, gains=gains)


def tested(default: GroupReport, winner: GroupReport, student: str) -> OnTest:
    """Test scores of the default weights and of the winner, each beside its own supervised baseline.

    default, winner: the same student under the same seeds. A baseline is trained with the settings of its student,
    so default and winner have different ones. By ``macro`` and task: scores by seed, the mean gain of the winner over
    the default, and the p-value of its sign-flip test.
    """
    sections: dict[str, tuple[GroupSection, GroupSection]] = {"macro": (default.macro, winner.macro)}
    sections |= {
        task: (section, winner.tasks[task])
        for task, section in default.tasks.items()
        if student in section.students
    }
    rows = {}
    for name, (before, after) in sections.items():
        old, new = before.students[student], after.students[student]
        gains = [b - a for a, b in zip(old.score.by_seed, new.score.by_seed, strict=True)]
        rows[name] = ScoresOnTest(
            default=old.score.by_seed,
            default_supervised=old.supervised.by_seed if old.supervised else None,
            best=new.score.by_seed,
            best_supervised=new.supervised.by_seed if new.supervised else None,
            ensemble=old.ensemble.by_seed,
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
    winner = next((trial for trial in trials if trial.number == facts.winner), None)
    tasks = [name for name in facts.ensemble if not name.startswith("macro/")]
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
    writer.writerow([*facts, "gain", "gain_error", *paths, *names])
    for trial in study.trials:
        own = [getattr(trial, name) for name in facts]
        values = [trial.values.get(path) for path in paths]
        gains = [None, None] if trial.gain is None else [trial.gain.mean, trial.gain.error]
        writer.writerow([*own, *gains, *values, *(trial.scores.get(name) for name in names)])
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
    if study.choice is not None and study.choice.stays:
        on_test = (
            []
            if study.test is None
            else [_default_on_test(study.test), _gain_from_teachers(study.test, stays=True)]
        )
        return [f"{lead} **The default stays.** {_finals(study.choice)}", *on_test]
    if winner is None:
        return [f"{lead} None of them has a score." if counts else lead]
    scores = ", ".join(f"{one} {measured(one, winner.scores[one])}" for one in study.metrics)
    values = ", ".join(f"`{path}` {shown(value)}" for path, value in winner.values.items())
    front = sum(trial.pareto for trial in study.trials)
    many = f"of {front} on the Pareto front that with the highest macro score"
    place = many if front > 1 else "alone on the Pareto front"
    which = f", {place}," if _several(study) else ""
    paragraphs = [f"{lead} The winner{which} is trial {winner.number}, {scores} on validation: {values}."]
    if study.choice is not None:
        paragraphs.append(_finals(study.choice))
    if study.scheduler == "pbt":
        paragraphs.append(
            "Values of a population change on the way, weights pass from trial to trial: shown are each trial's last "
            "values. `best.yaml` trains with the winner's from the start, which need not give its score again."
        )
    if study.test is not None:
        paragraphs += [_gain(study.test), _gain_from_teachers(study.test)]
    return paragraphs


def _finals(choice: ChoiceRecord) -> str:
    """Sentences on the finals: the gain of each finalist, and what it is worth."""
    seeds = f"over {len(choice.seeds)} seeds" if len(choice.seeds) > 1 else "with one seed"
    if not choice.gains:
        return f"No other trial ran to its end, to be compared with it {seeds}."
    ranked = sorted(choice.gains.items(), key=lambda item: -item[1].mean)
    each = ", ".join(f"trial {number} {_gain_of(gain)}" for number, gain in ranked)
    top = choice.gains[choice.winner] if not choice.stays and choice.winner is not None else ranked[0][1]
    sure = f"the lower end of its 90% interval, corrected for all trials, is {signed(top.lowest)}"
    luck = f"the best of as many trials, all as good as the default, would show {signed(top.by_chance)} by chance"
    return f"Gain over the default on validation, {seeds}: {each}. Of the best one {sure}; {luck}."


def _default_on_test(test: OnTest) -> str:
    """A sentence on the default's test score."""
    over = f"over {len(test.seeds)} seeds" if len(test.seeds) > 1 else "with one seed"
    return f"On test, {over}, it scores {plus_minus(Spread(test.scores['macro'].default))}."


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


def _gain_from_teachers(test: OnTest, stays: bool = False) -> str:
    """Sentences on the gain from the teachers: default and winner, each beside the same settings trained on labels alone.
    stays: the default is the winner."""
    macro, seeds = test.scores["macro"], len(test.seeds)
    models = [
        ("the student of the default weights is", macro.default, macro.default_supervised),
        ("that of the winner is", macro.best, macro.best_supervised),
    ][: 1 if stays else 2]
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
        return f"{text} With these settings nothing shows that the teachers help ({sure})."
    if worth.startswith("−"):
        return f"{text} With these settings labels alone do better than the teachers ({sure})."
    return f"{text} With these settings the teachers are worth {worth} points ({sure})."


def _beside(scores: Sequence[float], supervised: Sequence[float]) -> str:
    """`3.7 points above its supervised baseline (58.0)`: the means of both, by seed."""
    delta = statistics.fmean(scores) - statistics.fmean(supervised)
    base = points(statistics.fmean(supervised))
    if signed(delta) == "0.0":
        return f"level with its supervised baseline ({base})"
    where = "above" if delta > 0 else "below"
    return f"{points(abs(delta))} points {where} its supervised baseline ({base})"


def _bought(study: StudyReport) -> list[str]:
    if study.test is None or (study.choice is not None and study.choice.stays):
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
        "Points, mean ± standard deviation over the seeds. Searched: the winner. "
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
        if any(one.gain for one in study.trials):
            scores.append(_gain_of(trial.gain))
        front = ["yes" if trial.pareto else NOTHING] if _several(study) else []
        values = [shown(trial.values.get(path, NOTHING)) for path in paths]
        ended = trial.status + (f": {trial.error}" if trial.error else "")
        own = [text.replace("|", "\\|") for text in (f"{mark}{trial.number}{mark}", ended, *values)]
        rows.append([*own, *scores, *front, str(trial.epochs), f"{trial.seconds:.0f}"])
    gain = ["gain ¹"] if any(one.gain for one in study.trials) else []
    head = [
        "trial",
        "ended",
        *paths,
        *metrics,
        *gain,
        *(["Pareto"] if _several(study) else []),
        "epochs",
        "seconds",
    ]
    note = (
        "\n\n¹ Over the trial with the config's own values, on the same validation examples, ± its paired standard error: "
        "the seed is one, so that what the seed changes is not in it."
    )
    folds = f"\n\nScores are means over {study.folds} folds of train and validation." if study.folds else ""
    return markdown_table(head, rows, words=2) + (note if gain else "") + folds


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
