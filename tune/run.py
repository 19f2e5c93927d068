"""One study from config to report: soft targets → trials → winner → test scores of the winner and of the default.

A study's folder is `runs/<name>-study`. The best few trials and the default, which is the config's own values, are
trained again under every seed; the default stays unless one of them is better by more than chance (`tune.choice`). Then
the default is the plain run `runs/<name>`, as `tutelage train` makes it of the same file, and a winner is `runs/<name>-best`, as
it makes it of `best.yaml`. Both take over the trainings that the study has of them. Trials see validation only; only these two
runs are scored on test, once.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import group as groups
from pipeline import run as runs
from pipeline.cluster import connected
from pipeline.config.load import load_config
from pipeline.config.resolved import Job, with_absolute_paths
from pipeline.config.schema import RunConfig
from pipeline.config.view import to_yaml
from pipeline.display.display import Display
from pipeline.errors import ConfigError, ExhaustedError
from pipeline.files import write_atomically
from pipeline.report import group as group_report
from pipeline.report.results import ensemble_scores
from pipeline.report.schema import GroupReport, StudyReport
from pipeline.run_folder import (
    BEST_CONFIG,
    CONFIG,
    STUDY_PAGE,
    finals_folder,
    trials_folder,
)
from pipeline.running import LABEL_STAGES, Run, running
from pipeline.shared_runs import model_source, remove_weights_behind, teacher_sources
from pipeline.targets import make_targets
from pipeline.tracking.record import best_metrics, described_study, links, training_began, written_files
from pipeline.tracking.tracker import Role, Status
from pipeline.tracking.views import views_of_study
from pipeline.training.checkpoint import remove_checkpoints
from pipeline.training.log import METRICS
from tune import report
from tune.choice import Gain
from tune.finals import Choice, Finals, decides
from tune.folds import make_folds, mean_of, pooled
from tune.search import cpus_per_trial_worker, metrics_folder, remove_weights, search, training_folder
from tune.space import check_derived, checked, modes, most_epochs, student_of, values_of, with_values
from tune.study import DEFAULT, Trial, best, load, trial_name
from tune.trial import Shared, curve, trial_job

FREE = {"trials", "concurrency", "time_budget_s", "retries"}
"""Keys of `tune` that may change when a study is resumed."""
OUTCOMES: dict[str, Status] = {
    "finished": "FINISHED",
    "early-stopped": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
"""Status of a trial → its status in MLflow."""


def study_config(config: RunConfig) -> RunConfig:
    """The config of the study itself: it has its own folder, and its own parent run in the same MLflow experiment."""
    tracking = config.tracking.model_copy(update={"experiment": config.experiment})
    return config.model_copy(update={"name": f"{config.name}-study", "tracking": tracking, "seeds": ()})


def best_config(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """A complete config that trains the winner with `tutelage train`: the searched student with the winner's values."""
    student, changed = student_of(config), with_values(config, values)
    return changed.model_copy(
        update={
            "name": f"{config.name}-best",
            "students": {student: changed.students[student]},
            "tracking": config.tracking.model_copy(update={"experiment": config.experiment}),
            "tune": None,
        }
    )


def tune(config: RunConfig, display: Display, register: str | None = None) -> StudyReport:
    """The whole study; returns the contents of study.json. register: name of the winner in MLflow's model registry.

    The same command resumes a study. Raises any `TutelageError`: `ExhaustedError` where no trial gave a student,
    `InterruptedRunError` after the best trial so far is written down.
    """
    if config.runs_url is not None and config.train.workers > 1:
        raise ConfigError(
            "train.workers: a search behind a URL has trials of one worker",
            "Set train.workers to 1, or runs_dir to a folder that all nodes see.",
        )
    checked(config)
    own, student = study_config(config), student_of(config)
    _refuse_another_search(own)
    with (
        running(own, display, role="study", check=lambda inputs: check_derived(own, inputs.facts)) as run,
        connected(config, dashboard=config.train.workers > 1),
    ):
        run.order = (*LABEL_STAGES, "search", "finals")
        make_targets(run)
        study = _Study(config, run)
        run.stages.begin("search")
        try:
            study.search()
            study.finals()
        finally:
            written = study.write()
        run.stages.begin("test")
        run.stop.check()
        winner = study.winner
        if winner is None:
            raise ExhaustedError(
                "no trial gave a student",
                f"{own.run_dir / STUDY_PAGE} says how each ended; change tune.space or tune.trials.",
            )
        stays = winner == DEFAULT or study.values_of(winner) == study.own
        display.begin("the default, scored on test")
        done = study.trained(next(iter(study.rules.candidates(study.trials)), DEFAULT))
        default = _distil(
            config.model_copy(update={"tune": None}), display, register if stays else None, done
        )
        chosen = default
        if not stays:
            display.begin(f"the winner, trial {winner}, scored on test")
            best = best_config(config, study.values_of(winner))
            chosen = _distil(best, display, register, study.trained(winner))
        run.stop.listen()
        study.remove_weights()
        concluded = written.model_copy(update={"test": report.tested(default, chosen, student)})
        study.conclude(concluded)
        return concluded


def _who(number: int) -> str:
    """`trial 7`, or `the default`."""
    return "the default" if number == DEFAULT else f"trial {number}"


def _distil(
    config: RunConfig, display: Display, register: str | None, trained: Mapping[int, Mapping[Job, Path]]
) -> GroupReport:
    """Trains the config as `tutelage train` does; returns the group report of its seeds, also of a single one.

    trained: by seed, the trials that are such trainings already.
    """
    if config.seeds:
        return groups.distil_seeds(config, display, register, trained)
    one = runs.distil(config, display, register=register, trained=trained.get(config.seed, {}))
    return group_report.build(config.name, [one])


def _refuse_another_search(own: RunConfig) -> None:
    """Raises `ConfigError` where the study's folder belongs to another search. The rest of its config is checked as any
    run's."""
    settings = own.run_dir / CONFIG
    if not settings.exists():
        return
    before = load_config(settings).tune
    assert own.tune is not None, "`checked` comes first"
    old = {} if before is None else before.model_dump(mode="json", exclude=FREE)
    new = own.tune.model_dump(mode="json", exclude=FREE)
    changed = [key for key in new if old.get(key) != new[key]]
    if changed:
        raise ConfigError(
            f"{own.run_dir} is the study of another search: tune.{', tune.'.join(changed)} differ",
            f"Give this one another name (name=…), or remove {own.run_dir}.",
        )


def _for_trials(config: RunConfig) -> RunConfig:
    """The config that trials replace values in: with absolute paths, and models where every node finds them."""
    absolute = with_absolute_paths(config)
    students = {
        name: student.model_copy(
            update={"model": student.model and (model_source(config, Path(student.model)) or student.model)}
        )
        for name, student in absolute.students.items()
    }
    return absolute.model_copy(update={"students": students})


class _Study:
    """A running study: shows and records its trials."""

    def __init__(self, config: RunConfig, run: Run) -> None:
        assert config.tune is not None, "`checked` comes first"
        self.config, self.run = config, run
        self.metrics, self.modes = config.tune.metrics, modes(config)
        self.student = student_of(config)
        self.folds = make_folds(run, config.tune.folds) if config.tune.folds else []
        self.most_epochs = most_epochs(config, run.inputs.facts) * max(1, len(self.folds))
        self.folder = trials_folder(run.config.run_dir)
        self.trials = load(self.folder)
        self.final_trials = load(finals_folder(run.config.run_dir))
        self.own = values_of(config, config.tune.space, run.inputs.facts)
        data = pooled(self.folds) if self.folds else run.inputs.data
        learnt = config.tasks_of(self.student)
        self.rules = Finals(config, {task: data[task] for task in learnt}, self.own)
        self.choice: Choice | None = None
        reads = [(one.data, one.teacher_keys) for one in self.folds] or [(run.inputs.data, run.keys)]
        self.ensemble = mean_of(
            [
                ensemble_scores(config, {task: data[task] for task in learnt}, keys, "validation")
                for data, keys in reads
            ]
        )
        self.shared = Shared(
            config=_for_trials(config),
            facts=run.inputs.facts,
            folder=self.folder.absolute(),
            data=run.inputs.data,
            teacher_keys=run.keys,
            teacher_folders=teacher_sources(config, run.inputs.teachers),
            cpus=cpus_per_trial_worker(config),
            hidden=run.hidden,
            tokens=run.tokens,
            folds=self.folds,
        )
        self._tracked: set[str] = set()  # keys of open runs in MLflow
        self._without_weights: set[int] = set()  # trials whose weights were removed

    def search(self) -> None:
        """Runs the trials that are left."""
        total = self.config.tune.trials if self.config.tune else 0
        done = sum(trial.ended for trial in self.trials)
        what = f"{total} trials of {self.student}, {done} of them done; soft targets shared by all"
        ended = {trial.number for trial in self.trials if trial.ended}
        ahead = {f"trial {number}": 1.0 for number in range(total) if number not in ended}
        self.run.begin("search", what, noun="trials", unit="epochs", expected=ahead)
        for trial in self.trials:
            self._track(trial)
        self._run(self.shared, self.trials, None)

    def finals(self) -> None:
        """Trains the best few trials and the default under the seeds, and chooses the winner."""
        if not decides(self.config):
            return
        waiting = self.rules.points(self.trials, self.final_trials)
        if waiting:
            names = ", ".join(map(_who, self.rules.candidates(self.trials)))
            what = f"{names} under {len(self.rules.seeds)} seeds; {len(waiting)} trainings"
            ahead = {f"final {point['number']}": 1.0 for point in waiting}
            self.run.begin("finals", what, noun="trainings", unit="epochs", expected=ahead)
            self._run(self.shared_by_finals, self.final_trials, waiting)
            self.run.stop.check()
        self.choice = self.rules.choice(
            self.trials, self.final_trials, self._folders(self.shared), self._folders(self.shared_by_finals)
        )

    def trained(self, number: int) -> dict[int, dict[Job, Path]]:
        """The trainings of a candidate, by seed: a run with its values takes them over. None where they are of folds."""
        if self.folds:
            return {}
        places = self.rules.places(
            self.trials, self.final_trials, self._folders(self.shared), self._folders(self.shared_by_finals)
        )
        job = trial_job(self.config)
        return {seed: {job: folder} for (own, seed), folder in places.items() if own == number}

    def remove_weights(self) -> None:
        """Removes all weights: the runs have theirs."""
        for shared, trials in ((self.shared, self.trials), (self.shared_by_finals, self.final_trials)):
            for trial in trials:
                remove_checkpoints(training_folder(shared, trial))
            remove_weights_behind(shared.url)
            shutil.rmtree(shared.first_stages, ignore_errors=True)

    def _keep_weights_of_candidates(self) -> None:
        """Removes the weights of the trials that have ended and are not among the best few."""
        kept = {*self.rules.candidates(self.trials), *self._without_weights}
        for trial in self.trials:
            if trial.ended and trial.number not in kept:
                self._without_weights.add(trial.number)
                remove_weights(self.shared, trial)

    @property
    def shared_by_finals(self) -> Shared:
        """`shared`, with the finals' folder."""
        return replace(self.shared, folder=finals_folder(self.run.config.run_dir).absolute())

    @property
    def winner(self) -> int | None:
        """The winner's number, or `DEFAULT`; where nothing was chosen the best trial's, None without any."""
        if self.choice is not None:
            return self.choice.winner
        trial = best(self.trials, self.metrics, self.modes)
        return None if trial is None else trial.number

    def values_of(self, number: int) -> Mapping[str, Any]:
        """The values of a trial, of the default none."""
        return next((trial.values for trial in self.trials if trial.number == number), {})

    def _run(self, shared: Shared, trials: list[Trial], finals: Sequence[dict[str, Any]] | None) -> None:
        """Runs a search, or with `finals` these trainings, and shows them."""
        self.run.display.table(lambda: report.live_table(trials, self.metrics, self._gains()))
        try:
            runs.in_thread(
                lambda: search(self.config, shared, trials, self.watch, self.run.stop, finals, self.run.sync),
                self.run.stages.tick,
            )
        finally:
            self.run.display.table(None)

    def _folders(self, shared: Shared) -> dict[int, Path]:
        """The folders of the trainings, by number."""
        trials = self.trials if shared.folder == self.shared.folder else self.final_trials
        return {trial.number: training_folder(shared, trial) for trial in trials}

    def _gains(self) -> dict[int, Gain]:
        return self.rules.gains(self.trials, self._folders(self.shared)) if decides(self.config) else {}

    def watch(self, trial: Trial) -> None:
        """Records and shows a training that started, finished an epoch, or ended."""
        self._track(trial)
        epochs = trial.epochs if trial.ended else self.most_epochs
        what = "trial" if trial.repeats is None else "final"
        self.run.display.advance(f"{what} {trial.number}", trial.epochs, epochs)
        if trial.status == "running":
            return
        if trial.repeats is None:
            self._keep_weights_of_candidates()
        gain = self._gains().get(trial.number) if trial.repeats is None else None
        self.run.display.line(f"  {report.trial_line(trial, self.metrics, gain)}")

    def _track(self, trial: Trial) -> None:
        what: Role = "trial" if trial.repeats is None else "final"
        shared = self.shared if trial.repeats is None else self.shared_by_finals
        tracker, key = self.run.tracker, f"{what}/{trial.number}"
        if key not in self._tracked:
            self._tracked.add(key)
            learnt = self.config.tasks_of(self.student)
            teachers = [name for task in learnt for name in self.config.teachers_of(task)]
            tags = {"student": self.student, "tasks": ",".join(learnt)}
            tags |= {"teachers": ",".join(teachers), "study": self.run.config.name}
            if trial.repeats is not None:
                tags |= {"seed": str(trial.seed), "repeats": _who(trial.repeats)}
            name = f"{what}-{trial_name(trial.number)}"
            metrics = metrics_folder(shared, trial) / METRICS
            training_began(
                tracker,
                self.config,
                key,
                name,
                role=what,
                tags=tags,
                settings=trial.values,
                metrics=metrics,
            )
        if trial.status != "running":
            metrics_by_name = best_metrics(self.config, trial.scores)
            retention = report.retention(trial.scores, self.ensemble)
            metrics_by_name |= {f"best/{name}": value for name, value in retention.items()}
            tracker.metrics(key, metrics_by_name, step=trial.epochs)
            tracker.tags(key, {"outcome": trial.status, **({"error": trial.error} if trial.error else {})})
            tracker.finish(key, OUTCOMES[trial.status])
            self._tracked.discard(key)  # a trial that is interrupted may begin again

    def write(self) -> StudyReport:
        """Writes study.json, study.md, best.yaml, trials.csv and figures; returns the contents of study.json."""
        folder, run, winner = self.run.config.run_dir, self.run, self.winner
        if winner is not None:
            stays = self.choice is not None and self.choice.stays
            why = ", the default, which no trial was better than by more than chance" if stays else ""
            head = f"# {_who(winner).capitalize()} of {run.config.name}{why}: `tutelage train` makes its student.\n"
            write_atomically(
                folder / BEST_CONFIG, head + to_yaml(best_config(self.config, self.values_of(winner)))
            )
        facts = report.Facts(
            ensemble=self.ensemble,
            forwards={name: done.forwards for name, done in run.labelled.items()},
            needed={
                name: run.inputs.data[teacher.task].distinct() * (1 + len(self.folds))
                for name, teacher in self.config.teachers.items()
            },
            curves={trial.number: curve(metrics_folder(self.shared, trial)) for trial in self.trials},
            timings_s=run.stages.seconds(),
            gains=self._gains(),
            choice=self.choice,
            winner=winner,
        )
        study, files = report.write(self.config, folder, self.trials, facts, self._links())
        written = [file for file in (folder / BEST_CONFIG, *files) if file.exists()]
        written_files(run.tracker, written)
        together = best_metrics(self.config, self.ensemble)
        run.tracker.metrics("", {f"{name}/ensemble": one for name, one in together.items()})
        described_study(run.tracker, run.config, report.verdict(study))
        trial = next((one for one in self.trials if one.number == winner), None)
        if trial is not None:
            run.tracker.metrics("", best_metrics(self.config, trial.scores))
            run.tracker.tags("", {"best_trial": f"trial-{trial_name(trial.number)}"})
        return study

    def _links(self) -> dict[str, str] | None:
        """Addresses of the study's views in MLflow, by title."""
        own = self.run.config
        return links(self.run.tracker, own, views_of_study(own))

    def conclude(self, study: StudyReport) -> None:
        """Writes study.json and study.md again, with the test scores in `study`."""
        written_files(self.run.tracker, report.write_page(study, self.run.config.run_dir, self._links()))
        described_study(self.run.tracker, self.run.config, report.verdict(study))
        assert study.test is not None, "it is what concludes a study"
        macro = study.test.scores["macro"]
        means = {name: statistics.mean(getattr(macro, name)) for name in ("default", "best", "ensemble")}
        self.run.tracker.metrics("", {f"test/macro/{name}": mean for name, mean in means.items()})
