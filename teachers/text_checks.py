"""Is a teacher that writes texts worth distilling? The judgement, from what it wrote for a sample of validation examples.

Pure functions, as in `teachers.checks`, which judges the teachers of all other kinds.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipeline.batch import Examples
from pipeline.curve import Curve
from pipeline.shown import points
from pipeline.tasks.scores import bootstrap, score_of
from pipeline.tasks.task import Task
from pipeline.tasks.text_faults import loops
from pipeline.tasks.text_scores import text_chrf
from teachers.checks import Findings, Flag, Predictions, curve_flags, shuffled_scores

MANY = 0.5
"""Share of the examples from which a fault of single texts is a problem of the teacher."""
SOME = 0.05
"""Share from which it is a warning."""
ALIKE = 0.5
"""chrF of copies of the sources from which sources and references are alike by nature, as where spelling is corrected."""
ORDERS = 5
"""Random orders of the texts: a score of texts takes a thousand times as long as one of labels, and varies little."""
COPY = 0.95
"""chrF to the source from which a text is a copy of it."""


def judge_texts(name: str, task: Task, sample: Examples, predictions: Predictions, curve: Curve) -> Findings:
    """The `Findings` of the teacher `name`; arguments as in `teachers.checks.judge`."""
    values = predictions.values
    chance = shuffled_scores(task, values, sample, ORDERS)
    findings = Findings(
        teacher=name,
        task=task.name,
        metric=task.scoring.metric,
        examples=len(sample),
        score=score_of(task, values, sample),
        majority=task.scoring.constant_score(sample),
        chance=float(chance.mean()),
        replica_difference=predictions.replica_difference,
        truncated=predictions.truncated / max(1, len(sample)),
    )
    flags = [
        *_text_flags(task, sample, values[:, 0].tolist(), findings),
        *_score_flags(task, sample, predictions, findings),
    ]
    if not any(flag.certain for flag in flags):
        flags += curve_flags(task, sample, values, curve)
    if findings.replica_difference > 0:
        share = points(findings.replica_difference)
        flags.append(Flag(f"two replicas write another text for {share}% of the sources", certain=False))
    return replace(
        findings,
        problems=[flag.text for flag in flags if flag.certain],
        warnings=[flag.text for flag in flags if not flag.certain],
    )


def _text_flags(task: Task, sample: Examples, texts: list[str], findings: Findings) -> list[Flag]:
    """Faults that can be seen in single texts, each with the share of the texts that have it."""
    faults = {
        "are empty": np.mean([not text.strip() for text in texts]),
        "repeat the same few words": np.mean([loops(text) for text in texts]),
    }
    nearer = list[bool]()
    if not task.kind.audio:
        copied, nearer = _beside_sources(sample, texts)
        faults["copy the source"] = np.mean(copied)
    flags = [
        Flag(f"{points(float(share))}% of its texts {what}", certain=bool(share > MANY))
        for what, share in faults.items()
        if share > SOME
    ]
    if (
        nearer
        and task.kind.proportional
        and np.mean(nearer) > MANY
        and findings.majority < ALIKE
        and not flags
    ):
        what = (
            f"{points(float(np.mean(nearer)))}% of its texts are nearer to the source than to the reference"
        )
        certain = findings.score <= findings.majority
        flags.append(Flag(f"{what}: does it write another language?", certain))
    return flags


def _beside_sources(sample: Examples, texts: list[str]) -> tuple[list[bool], list[bool]]:
    """Of each text whether it is a copy of its source, and not of its reference, and whether it is nearer to the source."""
    sources, targets = sample.inputs["source"], sample.inputs["target"]
    copies = [text_chrf(text, source) >= COPY for text, source in zip(texts, sources, strict=True)]
    right = [text_chrf(text, target) >= COPY for text, target in zip(texts, targets, strict=True)]
    nearer = [
        text_chrf(text, source) > text_chrf(text, target)
        for text, source, target in zip(texts, sources, targets, strict=True)
    ]
    return [copy and not own for copy, own in zip(copies, right, strict=True)], nearer


def _score_flags(task: Task, sample: Examples, predictions: Predictions, findings: Findings) -> list[Flag]:
    """A flag where the score is not above that of {copies}, or of its own texts in random order."""
    measured = f"{findings.metric} {points(findings.score)} on {findings.examples} validation examples"
    assert findings.chance is not None, "judge_texts has drawn random orders"
    copies = "empty texts" if task.kind.audio else "copies of the sources"
    if findings.score <= findings.chance:
        return [
            Flag(f"{measured} is not above the {points(findings.chance)} of its own texts in random order")
        ]
    if findings.score <= findings.majority:
        return [Flag(f"{measured} is not above the {points(findings.majority)} of {copies}")]
    statistics = task.scoring.statistics(predictions.values, sample)
    error = float(bootstrap([statistics], task.scoring.score_of)[0].std())
    bound = max(findings.chance, findings.majority)
    if findings.score <= bound + 2 * error:
        text = f"{measured} (± {points(error)}) is not clearly above the {points(bound)} of {copies}, or of its own texts in random order"
        return [Flag(text, certain=False)]
    return []
