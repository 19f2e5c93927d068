"""A config in rounds: one plain run a round, or one group of seeds, then all rounds side by side.

Round 0 is the run as it is without `rounds`. Each later one learns from the student of the round before as well: see `pipeline.round_before`.
Each can be resumed and compared; the same command goes on with the round at which it stopped. Ray is started once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from pipeline import group
from pipeline import run as runs
from pipeline.cluster import connected
from pipeline.config.resolved import Job
from pipeline.config.schema import RunConfig
from pipeline.display.display import Display
from pipeline.files import write_atomically
from pipeline.report import rounds as reports
from pipeline.report.json_file import read, to_json
from pipeline.report.rounds import Made, RoundsReport
from pipeline.report.schema import Report
from pipeline.run_folder import REPORT, ROUNDS, ROUNDS_PAGE, refuse_changes, write_settings
from pipeline.shared_runs import held
from pipeline.stop import StopSignals
from pipeline.training.jobs import read_result


def round_config(config: RunConfig, number: int, students: Sequence[str]) -> RunConfig:
    """The config of one round, with the students that take part in it. Baselines are those of round 0; what the best teacher alone is worth
    is not asked again."""
    tracking = config.tracking.model_copy(update={"experiment": config.experiment})
    shared = {"name": config.name_of_round(number), "tracking": tracking}
    if not number:
        return config.model_copy(update={**shared, "rounds": None})
    assert config.rounds is not None, "a config in rounds"
    after = {"after": config.name_of_round(number - 1)}
    return config.model_copy(
        update={
            **shared,
            "rounds": config.rounds.model_copy(update=after),
            "students": {name: config.students[name] for name in students},
            "baselines": tuple(mode for mode in config.baselines if mode == "supervised"),
        }
    )


def distil_rounds(config: RunConfig, display: Display) -> RoundsReport:
    """Makes one round after another, while any student's validation score rises, then rounds.json and rounds.md; returns the contents of
    rounds.json. A student takes part while its own score rises.

    Raises any `TutelageError`; the earlier rounds stay.
    """
    folder, rounds = config.run_dir, config.rounds
    assert rounds is not None, "a config in rounds"
    with held(config, display.line), StopSignals(folder) as stop:
        refuse_changes(config)  # the rounds' own folders guard data and models
        write_settings(config)
        for note in reports.round_notes(config):
            display.line(note)
        made, students = list[Made](), list(config.students)
        # with all rounds there, probably none needs Ray
        with nullcontext() if (folder / ROUNDS).exists() else connected(config):
            stop.listen()
            for number in range(rounds.count + 1):
                stop.check()
                one = round_config(config, number, students)
                display.begin(f"round {number} (at most {rounds.count}): {one.run_dir}")
                made.append(_made(one, display))
                students = reports.still_rising(made)
                if not students:
                    break
        report = reports.build(config.name, made)
        write_atomically(folder / ROUNDS_PAGE, reports.markdown(report))
        write_atomically(folder / ROUNDS, to_json(report))
        return report


def _made(config: RunConfig, display: Display) -> Made:
    """Makes one round. config: the round's own."""
    if config.seeds:
        group.distil_seeds(config, display)
        members = list(group.seed_configs(config).values())
        finished = [read(one.run_dir / REPORT, Report) for one in members]
    else:
        members, finished = [config], [runs.distil(config, display)]
    validation = {
        student: [read_result(one.run_dir, Job(student, "distilled"))[0]["kept"] for one in members]
        for student in config.students
    }
    return Made(finished, validation)
