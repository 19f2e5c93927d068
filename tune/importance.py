"""How much each searched value mattered, as Optuna estimates it from the trials, whatever algorithm chose them."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config.schema import TuneConfig
from tune.space import distributions
from tune.study import Trial

FEWEST = 4
"""Trials below which an estimate says nothing."""


def importance(tune: TuneConfig, trials: Sequence[Trial], metric: str) -> dict[str, float]:
    """Share of the metric's variance by path, summing to 1, the largest first (fANOVA, Hutter et al. 2014).

    Of all trials with a score, those ended early with their last one. Empty with fewer than 4 of them, or where
    all scores are the same.
    """
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import create_trial

    scored = [trial for trial in trials if trial.status != "failed" and metric in trial.scores]
    if len(scored) < FEWEST or len({trial.scores[metric] for trial in scored}) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    known = distributions(tune)
    for trial in scored:
        study.add_trial(create_trial(params=trial.values, distributions=known, value=trial.scores[metric]))
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=tune.seed))
    return {path: float(share) for path, share in shares.items()}
