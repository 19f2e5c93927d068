"""study.json, study.md, trials.csv and the live table, out of made-up trials."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.compare.rows import load as compared
from pipeline.report.build import build as build_report
from pipeline.report.group import build as build_group
from pipeline.report.json_file import read, to_json
from pipeline.report.schema import GroupReport, OnTest, StudyReport
from pipeline.shown import signed
from tests.unit.pipeline.hand_results import hand_task, seeds_of, some_facts
from tests.unit.tune.studies import search_of, trial_of
from tune import report
from tune.choice import Gain
from tune.finals import Choice
from tune.report import (
    Facts,
    build,
    live_table,
    markdown,
    retention,
    shown,
    to_csv,
    trial_line,
    verdict,
    write,
    write_page,
)
from tune.space import modes
from tune.study import DEFAULT, Trial, best

SPACE: dict[str, Any] = {
    "loss.temperature": {"uniform": [1, 8]},
    "students.half.layers": {"choice": [1, [0, 3]]},
}
FACTS = Facts(
    ensemble={"movies/accuracy": 0.9, "stars/pearson": 0.8, "macro/score": 0.85},
    forwards={"movies-big": 1000, "movies-tiny": 500, "stars-big": 0},
    needed={"movies-big": 1000, "movies-tiny": 1000, "stars-big": 1000},
    curves={0: [{"epoch": 1, "metrics": {"macro/score": 0.7}}]},
    timings_s={"label": 12.35, "search": 99.0},
)


def some_trials() -> list[Trial]:
    return [
        trial_of(0, 0.81, values={"loss.temperature": 2.0, "students.half.layers": 1}, epochs=4, seconds=61.4),
        trial_of(1, 0.8449, values={"loss.temperature": 3.14159265, "students.half.layers": [0, 3]}, epochs=4, seconds=59),
        trial_of(2, 0.7, "early-stopped", values={"loss.temperature": 8.0, "students.half.layers": 1}, epochs=1, seconds=9),
        trial_of(
            3,
            status="failed",
            values={"loss.temperature": 1.0, "students.half.layers": 1},
            failures=2,
            error="ValueError: shapes (3|4) differ",
        ),
    ]  # fmt: skip


def study_of(trials: list[Trial] | None = None, facts: Facts = FACTS, **tune: Any) -> StudyReport:
    """study.json's content, as a later launch reads it."""
    config, own = search_of(SPACE, **tune), some_trials() if trials is None else trials
    top = best(own, config.tune.metrics, modes(config)) if config.tune else None
    facts = replace(facts, winner=None if top is None else top.number)
    content = build(config, "run-study", own, facts)
    return StudyReport.model_validate_json(to_json(content))


def concluded(test: OnTest) -> StudyReport:
    """A study whose winner has been scored on test."""
    return study_of().model_copy(update={"test": test})


def on_test(
    default: list[int], winner: list[int], supervised: int | None = 700, best_supervised: int | None = 720
) -> OnTest:
    """The `test` section; how many of 1,000 each has right, a seed each; baselines have the same for every seed."""

    def group(name: str, right: list[int], base: int | None) -> GroupReport:
        facts = seeds_of(some_facts(["large"], ["half"]), len(right), name)
        reports = [
            build_report({"movies": hand_task(count, base, 900, 1000)}, one)
            for count, one in zip(right, facts, strict=True)
        ]
        return build_group(name, reports)

    return report.tested(
        group("run", default, supervised), group("run-best", winner, best_supervised), "half"
    )


# ---------------------------------------------------------------- numbers


def test_numbers_by_hand() -> None:
    study = study_of()
    assert (study.name, study.student) == ("run-study", "half")
    assert study.space == {
        "loss.temperature": {"uniform": [1.0, 8.0]},
        "students.half.layers": {"choice": [1, [0, 3]]},
    }
    assert (study.algorithm, study.scheduler) == ("tpe", "asha")
    assert study.ensemble == FACTS.ensemble
    assert study.forwards_ratio == 0.5
    assert study.timings_s == {"label": 12.35, "search": 99.0}
    assert [row.best for row in study.trials] == [False, True, False, False]
    assert study.importance == {}  # three scores


def test_a_study_without_soft_targets_has_no_ratio() -> None:
    facts = Facts(FACTS.ensemble, {}, {}, {}, {})
    study = study_of(facts=facts)
    assert study.forwards_ratio is None
    assert "Teacher forwards ÷ (examples × teachers): –" in markdown(study, [])


def test_retention_is_of_the_ensemble() -> None:
    scores = {"macro/score": 0.68, "movies/accuracy": 0.9, "movies/nll": 0.3, "epoch": 4.0}
    assert retention(scores, FACTS.ensemble) == {
        "retention/macro": pytest.approx(0.8),
        "retention/movies": pytest.approx(1.0),
    }
    assert retention(scores, {"macro/score": 0.0, "movies/accuracy": -0.1}) == {}
    assert retention({}, FACTS.ensemble) == {}


def test_the_gain_is_the_winners_over_the_default() -> None:
    test = on_test([800, 810, 790], [820, 800, 800])
    assert test.seeds == (0, 1, 2)
    assert test.runs == (*(f"run-seed{n}" for n in range(3)), *(f"run-best-seed{n}" for n in range(3)))
    row = test.scores["movies"]
    assert row == test.scores["macro"]  # of a single task
    assert (row.default, row.best) == ((0.8, 0.81, 0.79), (0.82, 0.8, 0.8))
    assert (row.default_supervised, row.best_supervised) == ((0.7,) * 3, (0.72,) * 3)
    assert row.ensemble == (0.9,) * 3
    assert row.gain == pytest.approx(0.02 / 3)
    assert row.p == 0.75  # 2, −1 and 1: of 8 choices of signs only 2, 1, 1 is further off


def test_without_baseline_and_with_one_seed() -> None:
    test = on_test([800], [810], supervised=None, best_supervised=None)
    row = test.scores["macro"]
    assert (row.default_supervised, row.best_supervised, row.p) == (None, None, None)
    assert "nothing here says what the teachers were worth" in verdict(concluded(test))[-1]


# ---------------------------------------------------------------- in words


def test_a_search_for_several_metrics_says_who_is_on_the_front() -> None:
    trials = [
        trial_of(number, score, values={"loss.temperature": 2.0, "students.half.layers": 1}, scores={"movies/ece": ece})
        for number, (score, ece) in enumerate([(0.8, 0.1), (0.9, 0.2), (0.7, 0.3)])
    ]  # fmt: skip
    study = study_of(trials, metric=["macro/score", "movies/ece"], scheduler="none")
    (text,) = verdict(study)
    assert "The winner, of 2 on the Pareto front that with the highest macro score, is trial 1" in text
    assert "macro/score 90.0, movies/ece 0.200 on validation" in text
    alone = study_of(trials[:1], metric=["macro/score", "movies/ece"], scheduler="none")
    assert "The winner, alone on the Pareto front, is trial 0" in verdict(alone)[0]
    lines = [
        line
        for line in markdown(study, []).splitlines()
        if line.startswith(("| trial", "| 0", "| **1**", "| 2"))
    ]
    assert [line.split(" | ")[4:7] for line in lines] == [
        ["macro/score", "movies/ece", "Pareto"],
        ["80.0", "0.100", "yes"],
        ["90.0", "0.200", "yes"],
        ["70.0", "0.300", "–"],
    ]
    assert "movies/ece 0.100" in trial_line(trials[0], ["macro/score", "movies/ece"])


@pytest.mark.parametrize(
    ("default", "winner", "words"),
    [
        ([800], [810], "with one seed, it scores 81.0 where the default weights score 80.0: the search bought "
         "+1.0 points, which one seed cannot tell from chance."),
        ([800] * 8, [810] * 8, "over 8 seeds, it scores 81.0 where"),
        ([800] * 8, [810] * 8, "bought +1.0 points (p 0.0078; 8 pairs cannot give less than 0.0078)."),
        ([800, 810], [820, 810], "bought +1.0 points (p 1; 2 pairs cannot give less than 0.5)."),
        ([800, 800], [800, 800], ": the search bought nothing."),
        ([800, 810], [810, 800], ": the search bought nothing."),
        ([800], [788], "bought nothing, its winner is 1.2 points below them."),
        ([800] * 8, [788] * 8, "bought nothing, its winner is 1.2 points below them."),
    ],
)  # fmt: skip
def test_what_the_search_bought(default: list[int], winner: list[int], words: str) -> None:
    _, bought, _ = verdict(concluded(on_test(default, winner)))
    assert bought.startswith("On test, ")
    assert words in bought


@pytest.mark.parametrize(
    ("default", "winner", "baselines", "words"),
    [
        # the default's baseline is far below the winner's student, which its own baseline beats
        ([600], [617], (580, 691), "the student of the default weights is 2.0 points above its supervised baseline "
         "(58.0) and that of the winner is 7.4 points below its supervised baseline (69.1). With these settings "
         "labels alone do better than the teachers (one seed cannot tell that from chance)."),
        ([600] * 8, [617] * 8, (580, 600), "With these settings the teachers are worth +1.7 points (p 0.0078)."),
        ([600] * 2, [600] * 2, (None, 600), "alone, that of the winner is level with its supervised baseline (60.0). With "
         "these settings nothing shows that the teachers help (p 1)."),
    ],
)  # fmt: skip
def test_each_student_stands_beside_its_own_baseline(
    default: list[int], winner: list[int], baselines: tuple[int | None, int | None], words: str
) -> None:
    *_, owed = verdict(concluded(on_test(default, winner, *baselines)))
    assert owed.startswith("Beside the same settings trained on labels alone, ")
    assert words in owed


def test_verdict_counts_and_names_the_winner() -> None:
    assert verdict(study_of()) == [
        "4 trials of **half**: 2 finished, 1 early-stopped, 1 failed. The winner is trial 1, macro/score 84.5 on "
        "validation: `loss.temperature` 3.142, `students.half.layers` [0, 3]."
    ]


def test_verdict_of_a_study_that_was_interrupted_at_once() -> None:
    assert verdict(study_of([])) == ["0 trials of **half**: none had begun."]


def test_verdict_says_what_a_populations_values_are() -> None:
    _, words = verdict(study_of(scheduler="pbt", algorithm="random"))
    assert "last values" in words


def test_verdict_without_a_winner() -> None:
    lost = [trial_of(0, status="failed", error="lost"), trial_of(1, status="interrupted")]
    assert verdict(study_of(lost)) == [
        "2 trials of **half**: 1 failed, 1 interrupted. None of them has a score."
    ]


# ---------------------------------------------------------------- study.md


def tables(page: str) -> list[str]:
    return re.findall(r"(?:^\|.*\|\n)+", page, flags=re.MULTILINE)


def test_page() -> None:
    study = concluded(on_test([800, 810], [820, 810]))
    page = markdown(study, ["parallel.png", "pareto.png", "curves.png", "cost.png", "importance.png"])
    assert page.startswith("# run-study\n\n4 trials of **half**")
    assert (
        "| trial | ended | loss.temperature | students.half.layers | macro/score | epochs | seconds |" in page
    )
    assert "| 0 | finished | 2 | 1 | 81.0 | 4 | 61 |" in page
    assert "| **1** | finished | 3.142 | [0, 3] | 84.5 | 4 | 59 |" in page
    assert "| 2 | early-stopped | 8 | 1 | 70.0 | 1 | 9 |" in page
    assert r"| 3 | failed: ValueError: shapes (3\|4) differ | 1 | 1 | – | 0 | 0 |" in page
    assert "| macro | 80.5 ± 0.7 | 70.0 | 81.5 ± 0.7 | 72.0 | 90.0 | +1.0 | 1 |" in page
    assert "| on test | default | default, supervised | searched | searched, supervised | ensemble |" in page
    assert "[run-best-seed1](../run-best-seed1/report.md)" in page
    assert "| movies-tiny | 500 | 1,000 |" in page
    assert "Teacher forwards ÷ (examples × teachers): 0.50, for 4 trials: all read the same 3,000" in page
    assert "129 seconds went into trials" in page
    assert "Ensemble on validation: 85.0% macro" in page
    assert re.findall(r"figures/(\w+)\.png", page) == [
        "parallel",
        "pareto",
        "curves",
        "cost",
    ]
    assert len(tables(page)) == 3
    for table in tables(page):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_a_value_with_a_pipe_keeps_its_table_whole() -> None:
    trials = [trial_of(0, 0.8, values={"loss.temperature": 1.0, "students.half.layers": "/data/a|b"})]
    assert r"| **0** | finished | 1 | /data/a\|b | 80.0 |" in markdown(study_of(trials), [])


def test_page_of_a_study_that_came_to_nothing() -> None:
    page = markdown(study_of([trial_of(0, status="failed", error="lost", values={})]), [])
    assert "None of them has a score." in page
    assert "| 0 | failed: lost | – | – | – | 0 | 0 |" in page
    assert "## Learning curves" not in page
    assert "What the search bought" not in page
    assert markdown(study_of([]), []).startswith("# run-study\n\n0 trials of **half**")


def test_what_mattered_is_told_where_it_is_known() -> None:
    study = study_of().model_copy(update={"importance": {"loss.temperature": 1.0}})
    assert "![Importance of each value](figures/importance.png)" in markdown(study, ["importance.png"])
    assert "few trials, a rough guess" in markdown(study, [])
    assert "importance.png" not in markdown(study_of(), ["importance.png"])  # an earlier launch's


# ---------------------------------------------------------------- files


def test_csv_has_every_digit() -> None:
    trials = some_trials()
    trials[0].scores["movies/nll"] = 0.123456789
    lines = list(csv.DictReader(io.StringIO(to_csv(study_of(trials)))))
    assert [line["number"] for line in lines] == ["0", "1", "2", "3"]
    assert lines[0]["movies/nll"] == "0.123456789"
    assert lines[1]["loss.temperature"] == "3.14159265"
    assert lines[1]["students.half.layers"] == "[0, 3]"
    assert (lines[1]["best"], lines[1]["pareto"], lines[1]["movies/nll"]) == ("True", "True", "")
    assert lines[3]["error"] == "ValueError: shapes (3|4) differ"
    assert lines[3]["macro/score"] == ""


def test_files_are_written_and_compare_reads_them(tmp_path: Path) -> None:
    folder = tmp_path / "run-study"
    study, files = write(search_of(SPACE), folder, some_trials(), FACTS)
    assert {file.relative_to(folder).as_posix() for file in files} == {
        *("study.json", "study.md", "trials.csv"),
        *(f"figures/{name}.png" for name in ("parallel", "cost", "curves", "pareto")),
    }
    assert files[-1].name == "study.json"  # what makes the folder a study's comes last
    assert read(folder / "study.json", StudyReport) == study
    assert "figures/parallel.png" in (folder / "study.md").read_text()
    assert [row.trial.number for row in compared([folder]) if row.trial] == [1, 0, 2, 3]

    write_page(study.model_copy(update={"test": on_test([800], [810])}), folder)
    assert "## What the search bought" in (folder / "study.md").read_text()
    assert "figures/parallel.png" in (folder / "study.md").read_text()
    assert json.loads((folder / "study.json").read_text())["test"]["scores"]["macro"]["default"] == [0.8]
    assert len(compared([folder])) == 4


# ---------------------------------------------------------------- finals

CHANCE = {1: Gain(0.012, 0.006, looks=3), 2: Gain(-0.002, 0.004, looks=3)}
SURE = {1: Gain(0.05, 0.006, looks=3)}


def decided(choice: Choice) -> StudyReport:
    """A study with finals."""
    number = choice.winner if choice.winner != DEFAULT else None
    content = build(
        search_of(SPACE), "run-study", some_trials(), replace(FACTS, choice=choice, winner=number)
    )
    return StudyReport.model_validate_json(to_json(content))


def test_a_default_that_stays_is_said_to_with_the_gains_that_did_not_suffice() -> None:
    study = decided(Choice(winner=0, default=0, seeds=(0, 1, 2), gains=CHANCE))
    (text,) = verdict(study)
    assert (
        "**The default stays.** Gain over the default on validation, over 3 seeds: trial 1 +1.2 ± 0.6, trial 2 −0.2 ± 0.4."
        in text
    )
    assert f"corrected for all trials, is {signed(CHANCE[1].lowest)}" in text
    assert [trial.best for trial in study.trials] == [True, False, False, False]
    tested = study.model_copy(update={"test": on_test([800, 810], [800, 810])})
    assert "On test, over 2 seeds, it scores 80.5 ± 0.7." in " ".join(verdict(tested))
    assert "What the search bought" not in markdown(tested, [])


def test_a_default_that_is_no_trial_may_win() -> None:
    study = decided(Choice(winner=DEFAULT, default=DEFAULT, seeds=(0,), gains={}))
    assert study.choice is not None
    assert (study.choice.default, study.choice.winner, study.choice.stays) == (None, None, True)
    assert study.winner is None
    assert (
        "**The default stays.** No other trial ran to its end, to be compared with it with one seed."
        in verdict(study)[0]
    )


def test_a_winner_has_its_gain_in_the_verdict() -> None:
    study = decided(Choice(winner=1, default=0, seeds=(0, 1), gains=SURE))
    text = " ".join(verdict(study))
    assert "The winner is trial 1" in text
    assert "over 2 seeds: trial 1 +5.0 ± 0.6" in text


def test_gains_of_the_trials_stand_in_the_page_the_csv_and_the_live_table() -> None:
    study = build(search_of(SPACE), "run-study", some_trials(), replace(FACTS, gains=CHANCE, winner=1))
    assert "| gain ¹ |" in markdown(study, [])
    assert "| +1.2 ± 0.6 |" in markdown(study, [])
    rows = list(csv.DictReader(io.StringIO(to_csv(study))))
    assert [row["gain"] for row in rows] == ["", "0.012", "-0.002", ""]
    assert rows[1]["gain_error"] == "0.006"
    assert "+1.2 ± 0.6" in seen(some_trials(), gains=CHANCE)
    assert "+1.2 ± 0.6 to the default" in trial_line(some_trials()[1], ["macro/score"], CHANCE[1])


def test_a_finals_line_names_its_trial_and_seed() -> None:
    one, other = trial_of(3, 0.8, seed=2, repeats=1), trial_of(4, 0.8, seed=1, repeats=DEFAULT)
    assert trial_line(one, ["macro/score"]).startswith("trial 1, seed 2: finished, macro/score 80.0")
    assert trial_line(other, ["macro/score"]).startswith("the default, seed 1: finished")


# ---------------------------------------------------------------- while it goes on


def seen(
    trials: list[Trial], metrics: tuple[str, ...] = ("macro/score",), gains: dict[int, Gain] | None = None
) -> str:
    file = io.StringIO()
    Console(file=file, width=120).print(live_table(trials, metrics, gains or {}))
    return file.getvalue()


def test_live_table() -> None:
    running = trial_of(4, status="running", values=some_trials()[0].values)
    text = seen([*some_trials(), running])
    assert re.search(r"half\.\s+macro/\s+trial +status +temperature +layers +score +epochs +s", text)
    assert re.search(r"1 +finished +3\.142 +\[0, 3\] +84\.5 +4 +59", text)
    assert re.search(r"3 +failed +1 +1 +– +0 +0", text)
    assert re.search(r"4 +running +2 +1 +– +0 +0", text)
    assert seen([])


@pytest.mark.parametrize("name", ["/data/[x]/model", "[/x]", "[bold]", "[red]a[/red]", "a[/]", "\\[b]"])
def test_brackets_are_no_markup(name: str) -> None:
    """The table is drawn by a thread of the display: an error there would end it, a lost name mislead."""
    trial = trial_of(0, values={f"students.{name}.model": name}, scores={f"{name}/accuracy": 0.5})
    text = seen([trial], (f"{name}/accuracy",))
    assert name in text  # whole in its cell; between its parts a header may go on in the next line
    assert all(text.count(part) >= 3 for part in re.split("[/.]", name))


def test_a_trial_whose_values_are_others_is_shown() -> None:
    assert "–" in seen([some_trials()[0], trial_of(1, values={})])


def test_long_paths_can_be_told_apart() -> None:
    paths = [f"aggregation.teacher_weights.{name}-minilm" for name in ("movies", "tweets", "reviews")]
    text = seen([trial_of(0, values=dict.fromkeys(paths, 1.0))], ("macro/score",))
    assert all(path.rpartition(".")[2] in text for path in paths)


def test_trial_line() -> None:
    first, *_, failed = some_trials()
    assert trial_line(first, ["macro/score", "movies/nll"]) == (
        "trial 0: finished, macro/score 81.0, 4 epochs · loss.temperature=2, students.half.layers=1"
    )
    assert trial_line(failed, ["macro/score"]).startswith(
        "trial 3: failed (ValueError: shapes (3|4) differ), 0 epochs · "
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.14159, "3.142"),
        (1e-5, "1e-05"),
        (2.0, "2"),
        (3, "3"),
        ([0, 3], "[0, 3]"),
        (None, "None"),
        ("linear", "linear"),
    ],
)
def test_values_as_people_read_them(value: Any, text: str) -> None:
    assert shown(value) == text
