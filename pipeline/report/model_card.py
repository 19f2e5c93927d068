"""The model card of an exported student: README.md of one task's folder."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.resolved import StudentLoss, StudentSettings, task_aggregation
from pipeline.config.schema import RunConfig
from pipeline.files import write_atomically
from pipeline.report.page import loss_in_words
from pipeline.report.schema import Report
from pipeline.tasks import Task


def write_model_card(
    folder: Path, config: RunConfig, report: Report, settings: StudentSettings, task: Task
) -> None:
    """Writes README.md of one task's folder: what the model is, how it was made, its scores, how to load it.

    settings: the student's.
    """
    results, student = report.tasks[task.name], settings.name
    scored = results.students[student]
    strategy = task_aggregation(config, task.name).strategy
    length = settings.lengths[task.name]
    parts = [(stage.loss, f"for {stage.epochs} epochs ") for stage in settings.stages] or [
        (settings.loss, "")
    ]
    losses = ", then ".join(f"{long}{_loss(loss, task.name)}" for loss, long in parts)
    teachers = "\n".join(
        f"| teacher {name} | {100 * score:.1f} |" for name, score in results.teachers.items()
    )
    supervised = (
        ""
        if scored.supervised is None
        else f"| this student on labels alone | {100 * scored.supervised:.1f} |\n"
    )
    start = config.students[student].init_from or config.students[student].model
    labels = f"; labels: {', '.join(task.reading.labels)}" if task.reading.labels else ""
    calibration = "" if scored.ece is None else f" Expected calibration error {scored.ece:.3f}."
    card = f"""---
pipeline_tag: {task.kind.name}
library_name: transformers
tags: [distillation, tutelage]
---
# {student}: {task.name}

One task of a student that answers {", ".join(config.tasks_of(student))}, distilled by Tutelage (run {config.name}, seed {config.seed}).

```python
{task.head.snippet()}
```

Test {results.metric} on {results.examples["test"]} examples:

| | {results.metric} |
|---|---|
{teachers}
| ensemble of the teachers | {100 * results.ensemble:.1f} |
{supervised}| **this student** | **{100 * scored.score:.1f}** |

Trained on {results.examples["train"]} examples of this task{labels}; at most {length} tokens a sequence. Started from
{start}; loss {losses},
aggregation {strategy}.{calibration}

Limits: it has learnt what its teachers and labels say about texts like those it was trained on, mistakes included.
The licences of the base models and the data apply to it.
"""
    write_atomically(folder / "README.md", card)


def _loss(loss: StudentLoss, task: str) -> str:
    """A task's loss in one line."""
    annealing = " (the soft weight falls to 0 over training)" if loss.annealing == "linear" else ""
    return f"{loss_in_words(loss.tasks[task])}{annealing}"
