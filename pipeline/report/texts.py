"""What the models of a task wrote, side by side: the test examples on which student and ensemble differ most."""

from __future__ import annotations

import numpy as np

from pipeline.report.schema import WrittenExample
from pipeline.report.types import TaskResults
from pipeline.tasks.writing import writing_scoring

SHOWN = 10


def written_examples(results: TaskResults, most: int = SHOWN) -> tuple[WrittenExample, ...]:
    """The examples where a student's text, of the worst student, is least like the ensemble's; none of
    a kind that does not write, and none where all students write what the ensemble does."""
    if not results.task.kind.writes or not results.students:
        return ()
    together = results.ensemble[:, 0].tolist()
    alike_as = writing_scoring(results.task).likeness.of
    alike = np.array(
        [
            [alike_as(own, other) for own, other in zip(values[:, 0].tolist(), together, strict=True)]
            for values in results.students.values()
        ]
    ).min(axis=0)
    rows = np.argsort(alike, kind="stable")[:most]
    (sources,) = results.task.reading.plain(results.test.inputs)
    return tuple(
        WrittenExample(
            source=sources[row],
            reference=results.test.inputs["target"][row],
            teachers={name: str(values[row, 0]) for name, values in results.teachers.items()},
            ensemble=together[row],
            students={name: str(values[row, 0]) for name, values in results.students.items()},
            supervised={name: str(values[row, 0]) for name, values in results.supervised.items()},
        )
        for row in rows[alike[rows] < 1].tolist()
    )


def scoring_notes(results: TaskResults) -> list[str]:
    """How the scores of texts are computed, nothing of other kinds."""
    if not results.task.kind.writes:
        return []
    return [f"{name}: {signature}" for name, signature in writing_scoring(results.task).signatures.items()]
