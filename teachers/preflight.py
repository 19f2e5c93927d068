"""Is this teacher worth distilling? Asked of a few hundred validation examples, before anything is labelled.

`examine` is plain PyTorch; `preflight` runs it as Ray tasks with the teachers' own resources, or here where there
is no Ray. What is known of a teacher is kept under ``<runs_dir>/_preflight`` by its name in the store and the
examples asked, so that a warm run asks nothing again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from pipeline.batch import Examples, is_present
from pipeline.errors import ExhaustedError, TeacherError, TutelageError
from pipeline.files import write_atomically
from pipeline.losses import soft_kl, soft_squared_error
from pipeline.models import resolve
from pipeline.tasks import Task
from pipeline.tasks.scores import confusion
from teachers.aggregation import aggregate
from teachers.spec import TeacherSpec, requested
from teachers.teacher import Teacher

SAMPLE = 400  # validation examples; 2.5 points of standard error
TWICE = 40  # of them, asked of a second replica as well
UNIFORM = 0.995  # mean entropy ÷ ln(classes) from which answers say nothing
PERMUTED = 0.2  # mean recall that another naming of the labels must add
FEW = 5  # gold examples below which a class's recall says nothing
SELF_LOSS = 1e-3  # nats at temperature 1: what float16 may cost
TEMPERATURE = 2.0


@dataclass(frozen=True)
class Findings:
    """What one teacher did on the sample.

    score, majority: the task's metric, and the best constant answer's · entropy: mean over rows of the entropy
    ÷ ln(classes), None for numbers · ece: None where not one label out of C is chosen · self_loss: the soft loss of
    the teacher to its own stored targets · replica_difference: largest difference of two replicas' values ·
    truncated: share of the examples (words, for token-classification) · agreement: with each other teacher of
    the task · problems: why it should not be distilled.
    """

    teacher: str
    task: str
    metric: str
    examples: int
    score: float
    majority: float
    entropy: float | None
    ece: float | None
    self_loss: float
    replica_difference: float
    truncated: float
    agreement: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def sample_of(validation: Examples) -> Examples:
    """The examples that teachers are asked: the validation split's with the smallest keys, in a fixed order."""
    return validation.take(np.argsort(validation.keys, kind="stable")[:SAMPLE])


def examine(folder: Path, spec: TeacherSpec, sample: Examples, device: str = "cpu") -> tuple[Findings, Any]:
    """What one teacher does on `sample`, and its (M, C) values; its `agreement` is left empty."""

    def replica() -> Teacher:
        return Teacher(
            folder,
            spec.task,
            dtype=spec.serving.dtype,
            tokens_per_batch=spec.serving.tokens_per_batch,
            device=device,
            max_length=spec.max_length,
            labels=spec.labels,
            where=f"teachers.{spec.name}",
        )

    inputs = {name: sample.inputs[name] for name in spec.task.fields}
    some = {name: column[:TWICE] for name, column in inputs.items()}
    first = replica()
    said, truncated = first.label(inputs)
    once, twice = first.label(some)[0].values, replica().label(some)[0].values
    difference = float(np.abs(once.astype(np.float64) - twice).max())
    values = said.values
    return judge(spec.name, spec.task, sample, values, difference, truncated), values


def judge(
    name: str,
    task: Task,
    sample: Examples,
    values: NDArray[np.floating],
    difference: float,
    truncated: int,
) -> Findings:
    """`Findings` of a teacher that said `values` (M, C)."""
    counts = task.counts(sample.inputs)
    if not np.isfinite(values).all():
        item = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        row = int(np.searchsorted(np.cumsum(counts), item, side="right"))
        problem = f'it answers NaN or Inf on example "{_excerpt(task, sample, row)}"'
        return Findings(name, task.name, task.metric, len(sample), 0, 0, None, None, 0, 0, 0, {}, [problem])
    score = float(task.score_of(task.statistics(values, sample).sum(0)))
    majority = task.constant_score(sample)
    rows = task.rows(torch.from_numpy(np.ascontiguousarray(values)).float(), torch.from_numpy(counts))
    entropy = None if task.continuous else _entropy(rows)
    self_loss = _self_loss(task, values, rows, counts)
    items = int(counts.sum()) if task.lost == "words" else len(sample)
    problems = []
    if difference != 0:
        problems.append(
            f"two replicas differ by up to {difference:.2g}: part of its weights is drawn at random"
        )
    if moved := _permuted(task, values, sample):
        problems.append(f"its labels look permuted: {moved}")
    elif _is_uniform(task, values, entropy):
        problems.append("its answers do not depend on the text")
    elif score <= majority:
        problems.append(
            f"{task.metric} {100 * score:.1f} on {len(sample)} validation examples is not above the"
            f" {100 * majority:.1f} of an answer that never changes"
        )
    if not self_loss <= SELF_LOSS * TEMPERATURE**2:
        problems.append(f"its float16 soft targets are {self_loss:.2g} nats away from what it says")
    return Findings(
        name,
        task.name,
        task.metric,
        len(sample),
        score,
        majority,
        entropy,
        task.scores(values, sample).get("ece"),
        self_loss,
        difference,
        truncated / max(1, items),
        problems=problems,
    )


def _excerpt(task: Task, sample: Examples, row: int) -> str:
    fields = (sample.inputs[name][row] for name in task.fields)
    return " | ".join(field if isinstance(field, str) else " ".join(field) for field in fields)[:80]


def _entropy(rows: torch.Tensor) -> float:
    """Mean over rows (N, D) of the entropy ÷ ln of the columns that are present; rows of one column are left out."""
    choices = is_present(rows).sum(dim=-1)
    entropies = torch.special.entr(torch.softmax(rows, dim=-1)).sum(dim=-1)
    some = choices > 1
    return float((entropies[some] / choices[some].log()).mean()) if bool(some.any()) else 0.0


def _is_uniform(task: Task, values: NDArray[np.floating], entropy: float | None) -> bool:
    if entropy is not None:
        return entropy >= UNIFORM
    spread = float(values.std())  # numbers
    return spread <= 1e-3 * float(getattr(task, "scale", 1.0))


def _self_loss(
    task: Task, values: NDArray[np.floating], rows: torch.Tensor, counts: NDArray[np.int64]
) -> float:
    """Mean soft loss of the teacher, as a student, to what the store would keep of it."""
    with np.errstate(over="ignore"):
        kept = torch.from_numpy(values.astype(np.float16).astype(np.float32))
    stored = task.rows(kept, torch.from_numpy(counts))
    target = aggregate(
        stored.unsqueeze(0),
        strategy="mean",
        weights=torch.ones(1),
        temperature=TEMPERATURE,
        labels=None,
        continuous=task.continuous,
    )
    loss = (soft_squared_error if task.continuous else soft_kl)(rows, target, TEMPERATURE)
    if not task.continuous:
        loss = loss[is_present(rows).any(dim=-1)]
    return float(loss.mean())


def _permuted(task: Task, values: NDArray[np.floating], sample: Examples) -> str:
    """In words, which labels are taken for which, where another naming fits far better; else nothing."""
    from scipy.optimize import linear_sum_assignment

    found = task.classified(values, sample)
    if found is None or not len(found[1]):
        return ""
    counts = confusion(*found)
    known = np.flatnonzero(counts.sum(1) >= FEW)
    recall = counts[known] / counts[known].sum(1, keepdims=True)
    best = linear_sum_assignment(recall, maximize=True)[1]
    gain = recall[np.arange(len(known)), best].mean() - recall[np.arange(len(known)), known].mean()
    if gain < PERMUTED:
        return ""
    pairs = [
        f"{task.labels[theirs]!r} where the data say {task.labels[ours]!r}"
        for ours, theirs in zip(known, best, strict=True)
        if ours != theirs
    ]
    return f"it says {', '.join(pairs[:3])}"


def with_agreement(
    findings: Sequence[Findings],
    values: Mapping[str, Any],
    tasks: Mapping[str, Task],
    samples: Mapping[str, Examples],
) -> list[Findings]:
    """The findings, each with its agreement with the task's other teachers."""
    shares: dict[str, dict[str, float]] = {one.teacher: {} for one in findings}
    for a, b in combinations(findings, 2):
        broken = not (np.isfinite(values[a.teacher]).all() and np.isfinite(values[b.teacher]).all())
        if a.task != b.task or broken:
            continue
        share = tasks[a.task].agreement(values[a.teacher], values[b.teacher], samples[a.task])
        shares[a.teacher][b.teacher] = shares[b.teacher][a.teacher] = share
    return [Findings(**{**asdict(one), "agreement": shares[one.teacher]}) for one in findings]


def refuse(findings: Sequence[Findings], warn_only: Callable[[str], bool]) -> list[str]:
    """Warnings for the teachers that may go on all the same; raises `TeacherError` for the first that may not."""
    bad = [one for one in findings if one.problems]
    stopping = [one for one in bad if not warn_only(one.teacher)]
    if stopping:
        first, more = stopping[0], len(stopping) - 1
        also = f" (and {more} more: {', '.join(one.teacher for one in stopping[1:])})" if more else ""
        raise TeacherError(
            f"preflight: teachers.{first.teacher}: {'; '.join(first.problems)}{also}",
            f"Mend the teacher, or go on all the same with teachers.{first.teacher}.preflight=warn.",
        )
    return [f"preflight: teachers.{one.teacher}: {'; '.join(one.problems)}" for one in bad]


# ---------------------------------------------------------------- all teachers, on Ray or here


def preflight(
    specs: Sequence[TeacherSpec],
    validation: Mapping[str, Examples],
    cache: Path,
    *,
    on_ray: bool,
    check: Callable[[], None] = lambda: None,
) -> list[Findings]:
    """Every teacher's findings, from `cache` or made now; blocks. Raises what a teacher raised, and
    what `check`, called about twice a second, does."""
    samples = {task: sample_of(examples) for task, examples in validation.items()}
    files = {spec.name: _file(cache, spec, samples[spec.task.name]) for spec in specs}
    missing = [spec for spec in specs if not files[spec.name].with_suffix(".json").is_file()]
    ask = _ask_on_ray if on_ray else _ask_here
    for spec, (found, values) in zip(missing, ask(missing, samples, check), strict=True):
        cache.mkdir(parents=True, exist_ok=True)
        scratch = files[spec.name].with_suffix(".part")
        save_file({"values": np.ascontiguousarray(values)}, scratch)
        scratch.replace(files[spec.name])
        write_atomically(files[spec.name].with_suffix(".json"), json.dumps(asdict(found)))
    findings = [
        Findings(**{**json.loads(files[spec.name].with_suffix(".json").read_text()), "teacher": spec.name})
        for spec in specs
    ]
    values = {spec.name: load_file(files[spec.name])["values"] for spec in specs}
    return with_agreement(findings, values, {spec.task.name: spec.task for spec in specs}, samples)


def _file(cache: Path, spec: TeacherSpec, sample: Examples) -> Path:
    """Where the values are kept: by teacher, examples, labels and metric."""
    digest = blake2b(sample.keys.tobytes() + sample.labels.values.tobytes(), digest_size=8)
    digest.update(f"{spec.task.name} {spec.task.metric} {spec.task.labels}".encode())
    return cache / f"{spec.key}-{digest.hexdigest()}.safetensors"


def _ask_here(
    specs: Sequence[TeacherSpec], samples: Mapping[str, Examples], check: Callable[[], None]
) -> list[tuple[Findings, Any]]:
    return [
        examine(resolve(spec.model, spec.revision, f"teachers.{spec.name}"), spec, samples[spec.task.name])
        for spec in specs
    ]


def _ask_on_ray(
    specs: Sequence[TeacherSpec], samples: Mapping[str, Examples], check: Callable[[], None]
) -> list[tuple[Findings, Any]]:
    import ray

    refs = []
    for spec in specs:
        asked = requested(spec.serving)
        others = {name: amount for name, amount in asked.items() if name not in ("CPU", "GPU")}
        remote = ray.remote(_examine_task).options(
            num_cpus=asked["CPU"], num_gpus=asked["GPU"], resources=others, max_retries=spec.serving.restarts
        )
        refs.append(remote.remote(spec, samples[spec.task.name]))
    # Those left when one fails end by themselves: Ray 2.60 aborts the driver when it cancels a task that just ends.
    return [_answer(spec, ref, len(specs), check) for spec, ref in zip(specs, refs, strict=True)]


def _answer(spec: TeacherSpec, ref: Any, queue: int, check: Callable[[], None]) -> tuple[Findings, Any]:
    """What a teacher's task found; it may have had to wait for the `queue` of all of them."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    end = time.monotonic() + spec.serving.timeout_s * queue
    while not ray.wait([ref], timeout=0.5)[0]:
        check()
        if time.monotonic() > end:
            raise ExhaustedError(
                f"preflight of {spec.name}: no answer for {spec.serving.timeout_s * queue:g} s",
                f"Raise teachers.{spec.name}.serving.timeout_s, or see whether the cluster has what it asks for.",
            )
    try:
        found: tuple[Findings, Any] = ray.get(ref, timeout=spec.serving.timeout_s)
        return found
    except RayTaskError as error:
        if isinstance(error.cause, TutelageError):
            raise error.cause from None
        raise ExhaustedError(
            f"preflight of {spec.name} failed: {error.cause}", "Run again with --debug."
        ) from error
    except RayError as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise ExhaustedError(
            f"preflight of {spec.name}: {lines[0]}",
            f"See the node's memory and teachers.{spec.name}.serving.",
        ) from error


def _examine_task(spec: TeacherSpec, sample: Examples) -> tuple[Findings, Any]:
    import ray

    torch.set_num_threads(max(1, int(spec.serving.cpus)))
    folder = resolve(spec.model, spec.revision, f"teachers.{spec.name}")
    return examine(folder, spec, sample, "cuda" if ray.get_gpu_ids() else "cpu")
