"""The importance of each searched value, estimated by Optuna from the trials of any algorithm."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config.search import TuneConfig
from tune.space import distributions
from tune.study import Trial

FEWEST = 4
"""Fewest trials for an estimate."""


def importance(tune: TuneConfig, trials: Sequence[Trial], metric: str) -> dict[str, float]:
    """Shares of the metric's variance by path, which sum to 1, in descending order (fANOVA, Hutter et al. 2014).

    Uses all trials with a score; a trial that was ended early counts with its last one. Empty with fewer than `FEWEST`
    such trials, or where all their scores are equal.
    """
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import create_trial

    scored = [trial for trial in trials if trial.status != "failed" and metric in trial.scores]
    if len(scored) < FEWEST or len({trial.scores[metric] for trial in scored}) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    space = distributions(tune)
    for trial in scored:
        study.add_trial(create_trial(params=trial.values, distributions=space, value=trial.scores[metric]))
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=tune.seed))
    return {path: float(share) for path, share in shares.items()}
