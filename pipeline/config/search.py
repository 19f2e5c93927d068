"""The part of the config tree that says what is searched for, and how. See `pipeline.config.schema`."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_serializer, model_validator

from pipeline.config.fields import Count, Positive, Strict

Aim = Literal["max", "min"]


class Distribution(Strict):
    """The values a search may give one key: one of these, named and bounded as Ray Tune has them."""

    choice: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    """One of a list."""
    uniform: tuple[float, float] | None = None
    """`[low, high]`."""
    loguniform: tuple[float, float] | None = None
    """`[low, high]`, evenly on a logarithmic scale."""
    quniform: tuple[float, float, float] | None = None
    """`[low, high, step]`."""
    randint: tuple[int, int] | None = None
    """`[low, high]`, integers below `high`."""
    lograndint: tuple[int, int] | None = None
    """`[low, high]`, integers below `high`, evenly on a logarithmic scale."""

    @model_validator(mode="after")
    def _one_kind(self) -> Distribution:
        if sum(getattr(self, name) is not None for name in type(self).model_fields) != 1:
            raise ValueError(f"give one of {', '.join(type(self).model_fields)}")
        kind, bounds = self.kind, self.arguments
        if kind != "choice" and not bounds[0] < bounds[1]:
            raise ValueError("low must be below high")
        if kind.startswith("log") and bounds[0] <= 0:
            raise ValueError("a logarithmic scale starts above 0")
        if kind == "quniform" and (
            bounds[2] <= 0 or not all(math.isclose(end / bounds[2], round(end / bounds[2])) for end in bounds)
        ):
            raise ValueError("the step must be above 0, and both ends multiples of it")
        return self

    @property
    def kind(self) -> str:
        """The distribution's name in Ray Tune."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The choices, or bounds and step."""
        return tuple(getattr(self, self.kind))

    @model_serializer
    def _shown(self) -> dict[str, tuple[Any, ...]]:
        return {self.kind: self.arguments}


class TuneConfig(Strict):
    """A search for the values that give the best student; read by `tutelage tune` alone."""

    space: Annotated[dict[str, Distribution], Field(min_length=1)]
    """Distribution by dotted path of the key, e.g. `loss.temperature: {uniform: [1, 8]}`. Any key that changes the student and neither teachers nor soft targets."""
    student: str | None = None
    """The student that is searched; null: the only one."""
    metric: str | Annotated[tuple[str, ...], Field(min_length=1)] = "macro/skill"
    """What is searched for, on validation: `macro/skill`, the share of the gold labels' log-loss that the student explains at its best temperature (of a number, the coefficient of determination), mean over the tasks: smoother than any metric · `macro/score`, `<task>/skill`, `<task>/<metric>` · a list of these: then the search is for their Pareto front."""
    mode: Aim | Annotated[tuple[Aim, ...], Field(min_length=1)] | None = None
    """`max` or `min`, one for each metric; null: as the metric is meant (`min` for `nll`, `ece`, `mse`, `mae`)."""
    trials: Count = 16
    """Trials in all. A finished search goes on when there are more."""
    concurrency: Count = 2
    """Trials at a time; they share the CPUs evenly where `train.cpus_per_worker` is null."""
    time_budget_s: Positive | None = None
    """Seconds after which no trial goes on; null: no limit."""
    algorithm: Literal["tpe", "random", "grid"] = "tpe"
    """`tpe`: Optuna's, also for several metrics · `random` · `grid`: all combinations of the `choice`s."""
    scheduler: Literal["asha", "pbt", "none"] = "asha"
    """`asha`: ends trials that are behind · `pbt`: population-based training, trials take over each other's weights and change their values on the way; all trials side by side, of one worker each, without early stopping · `none`: every trial runs to its end."""
    grace_epochs: Count = 1
    """Epochs before `asha` ends a trial; between changes with `pbt`."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """Of `asha`: one of this many goes on at each rung."""
    retries: Annotated[int, Field(ge=0)] = 1
    """Times a trial that failed is tried again, from its last checkpoint, before it is marked as failed."""
    folds: Annotated[int, Field(ge=2, le=10)] | None = None
    """Cross-validation: the labelled texts of train and validation are cut into so many folds, teachers are fine-tuned once without each, and a trial trains a student for each, which that fold validates; its score is the mean. For small train and validation splits. Rungs and grace_epochs of `asha` then count folds. null: trials are validated on the validation split."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the search, but for what `pbt` changes on the way; trials all have the run's."""

    @model_validator(mode="after")
    def _fits(self) -> TuneConfig:
        if isinstance(self.mode, tuple) and len(self.mode) != len(self.metrics):
            raise ValueError(f"mode: {len(self.mode)} modes for {len(self.metrics)} metrics")
        if len(set(self.metrics)) != len(self.metrics):
            raise ValueError("metric: the same one twice")
        if len(self.metrics) > 1 and self.scheduler != "none":
            raise ValueError(f"scheduler: {self.scheduler} compares trials by one metric, set it to none")
        if self.algorithm == "grid" and any(one.choice is None for one in self.space.values()):
            raise ValueError("algorithm: grid needs a choice for every key of space")
        if self.folds is not None and self.scheduler == "pbt":
            raise ValueError(
                "folds: population-based training changes one training, a fold is one of several"
            )
        if self.scheduler == "pbt" and self.algorithm != "random":
            raise ValueError("scheduler: pbt needs algorithm: random, it changes values by itself")
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of the search, one or several."""
        return (self.metric,) if isinstance(self.metric, str) else self.metric
