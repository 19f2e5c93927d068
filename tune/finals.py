"""The finals of a study: which trainings they need, and what their predictions say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.kinds import SKILL
from pipeline.config.schema import RunConfig
from pipeline.data.splits import TaskData
from pipeline.errors import CorruptError
from pipeline.tasks.resampled import Sample
from pipeline.training.result import read_predictions
from tune.choice import Gain, default_trial, finalists, gain, sample, winner_of
from tune.space import modes
from tune.study import DEFAULT, Trial


def decides(config: RunConfig) -> bool:
    """Whether there are finals: the search is for one metric, whose gains have a standard error."""
    assert config.tune is not None, "`checked` comes first"
    if len(config.tune.metrics) > 1:
        return False
    name, _, metric = config.tune.metrics[0].rpartition("/")
    selecting = (
        None if name == "macro" else config.tasks[name].metric or config.tasks[name].declared.metrics[0].name
    )
    return name == "macro" or metric in (SKILL, selecting)


@dataclass(frozen=True)
class Choice:
    """The outcome. winner, default: numbers of trials, or `DEFAULT` · gains: of the other finalists over the default."""

    winner: int
    default: int
    seeds: tuple[int, ...]
    gains: Mapping[int, Gain]

    @property
    def stays(self) -> bool:
        """Whether the default was not replaced."""
        return self.winner == self.default


@dataclass
class Finals:
    """What the finals of a study's trials are; `own`: the config's own values, None where they lie outside the space."""

    config: RunConfig
    data: Mapping[str, TaskData]
    own: Mapping[str, Any] | None
    _samples: dict[Path, Sample | None] = field(default_factory=dict)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds under which finalists are compared."""
        return self.config.seeds or (self.config.seed,)

    def candidates(self, trials: Sequence[Trial]) -> dict[int, Mapping[str, Any]]:
        """The values of the default, which comes first, and of the best few other trials, by number; empty where no trial
        ran to its end."""
        tune = self.config.tune
        assert tune is not None, "`checked` comes first"
        finished = [one for one in trials if one.status == "finished"]
        if not finished:
            return {}
        default = default_trial(trials, self.own)
        chosen = finalists(trials, tune.metrics, modes(self.config), default)
        own = {DEFAULT: {}} if default is None else {default.number: default.values}
        return {**own, **{one.number: one.values for one in chosen}}

    def points(self, trials: Sequence[Trial], finals: Sequence[Trial]) -> list[dict[str, Any]]:
        """The trainings that are still to be done. finals: those that were begun."""
        begun = {(one.repeats, one.seed): one for one in finals}
        numbers = iter(range(len(finals), 10**9))
        points = []
        for number, values in self.candidates(trials).items():
            for seed in self.seeds:
                if self._is_trials_own(number, seed):
                    continue
                one = begun.get((number, seed))
                if one is None or not one.ended:
                    place = next(numbers) if one is None else one.number
                    points.append({"number": place, "values": dict(values), "seed": seed, "repeats": number})
        return points

    def choice(
        self,
        trials: Sequence[Trial],
        finals: Sequence[Trial],
        folder_of_trial: Mapping[int, Path],
        folder_of_final: Mapping[int, Path],
    ) -> Choice | None:
        """Which of the candidates wins; None where the default has no predictions under some seed. A candidate without
        predictions under some seed is out. Folders: of the trainings, by number."""
        places = self.places(trials, finals, folder_of_trial, folder_of_final)
        samples: dict[int, list[Sample]] = {}
        for number in self.candidates(trials):
            folders = [places.get((number, seed)) for seed in self.seeds]
            each = [None if folder is None else self.sample(folder) for folder in folders]
            whole = [one for one in each if one is not None]
            if len(whole) == len(each):
                samples[number] = whole
        default = next(iter(self.candidates(trials)), None)
        if default is None or default not in samples:
            return None
        gains = {
            number: self._gain(own, samples[default], trials)
            for number, own in samples.items()
            if number != default
        }
        return Choice(winner_of(gains, default), default, self.seeds, gains)

    def places(
        self,
        trials: Sequence[Trial],
        finals: Sequence[Trial],
        folder_of_trial: Mapping[int, Path],
        folder_of_final: Mapping[int, Path],
    ) -> dict[tuple[int, int], Path]:
        """The folders of the candidates' finished trainings, by (number of the candidate, seed)."""
        places = {
            (one.repeats, one.seed): folder_of_final[one.number]
            for one in finals
            if one.status == "finished" and one.repeats is not None and one.seed is not None
        }
        return places | {
            (number, self.config.seed): folder_of_trial[number]
            for number in self.candidates(trials)
            if self._is_trials_own(number, self.config.seed)
        }

    def gains(self, trials: Sequence[Trial], folders: Mapping[int, Path]) -> dict[int, Gain]:
        """The gain of every finished trial over the trial with the default's values, with the trials' own seed; empty
        without that trial. folders: of the trials' trainings, by number."""
        default = default_trial(trials, self.own)
        base = None if default is None else self.sample(folders[default.number])
        if base is None:
            return {}
        finished = [one for one in trials if one.status == "finished" and one is not default]
        each = {one.number: self.sample(folders[one.number]) for one in finished}
        return {number: self._gain([own], [base], trials) for number, own in each.items() if own is not None}

    def sample(self, folder: Path) -> Sample | None:
        """The sample of a finished training; each folder's predictions are read once."""
        tune = self.config.tune
        assert tune is not None, "`checked` comes first"
        if folder not in self._samples:
            try:
                self._samples[folder] = sample(tune.metrics[0], self.data, read_predictions(folder))
            except CorruptError:
                return None
        return self._samples[folder]

    def _gain(self, own: Sequence[Sample], default: Sequence[Sample], trials: Sequence[Trial]) -> Gain:
        looks = max(1, sum(one.status == "finished" and one.values != self.own for one in trials))
        return gain(own, default, looks, 1 if modes(self.config)[0] == "max" else -1)

    def _is_trials_own(self, number: int, seed: int) -> bool:
        """Whether the trial itself is the training: a population's values changed on the way, so that it is none."""
        assert self.config.tune is not None, "`checked` comes first"
        return number != DEFAULT and seed == self.config.seed and self.config.tune.scheduler != "pbt"
