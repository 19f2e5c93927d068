"""The part of the config tree that says in which rounds students are trained. See `pipeline.config.schema`."""

from __future__ import annotations

from pipeline.config.fields import Count, Name, Positive, Share, Strict


class SamplingConfig(Strict):
    """How a student writes the texts of a round."""

    temperature: Positive = 1.0
    """Tokens are drawn at random at this temperature."""
    max_new_tokens: Count | None = None
    """Most tokens of a text; null: the task's `target_length`."""


class RoundsConfig(Strict):
    """Trainings one after another, each of which learns from the student of the round before as well. Round 0 is the run as it is without `rounds`; a student's rounds end
    after the first one whose validation score is not above that of all before."""

    count: Count = 3
    """Most rounds after round 0."""
    share: Share = 0.5
    """Of a task that writes: the share of examples, drawn anew each epoch, that learn their teachers' distributions along the student's own text (on-policy distillation, GKD, 2306.13649) · of another: the weight of the student of the round before among its teachers (born-again networks, 1805.04770; 1: it alone)."""
    warm_start: bool | None = None
    """Whether a student goes on with its weights of the round before, heads as well, or begins anew · null: students that write go on, others begin anew."""
    sampling: SamplingConfig = SamplingConfig()
    """How the student writes its own texts, one for each training source in each round."""
    after: Name | None = None
    """The run whose students are those of the round before: this config is then one later round. `tutelage train` sets it in the configs of the rounds that it makes."""
