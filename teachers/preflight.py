"""Preflight: every teacher's predictions on a few hundred validation examples, before anything is labelled.

`predict` is plain PyTorch; `preflight` runs it as Ray tasks with the teachers' own resources, or in this process where
there is no Ray. Predictions are kept under ``<runs_dir>/_preflight``, so that a warm run opens no teacher again. The
judgement (`teachers.checks`) is computed again each time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline.arithmetic import Dtype
from pipeline.batch import Examples
from pipeline.curve import Curve
from pipeline.errors import ExhaustedError, TutelageError
from pipeline.files import write_atomically
from pipeline.models import resolve
from pipeline.places import PATIENCE, Patience, Place, run_placed
from pipeline.predictor import Predictor
from pipeline.tasks.writing import writing_head
from pipeline.text_arrays import arrays_of, numbers_of
from teachers.checks import (
    NO_CURVE,
    Findings,
    Predictions,
    judge,
    relative_difference,
    rounding_of,
    with_agreement,
)
from teachers.random_heads import HEAD_EXAMPLES, HEADS, random_head_scores
from teachers.spec import TeacherSpec, requested
from teachers.text_checks import judge_texts

SAMPLE = 400  # validation examples; 2.5 points of standard error
TWICE = 40  # of them, predicted by a second replica as well
FORMAT = 2  # of the cached predictions; raise it where they are made in another way


def sample_of(validation: Examples) -> Examples:
    """The examples that teachers predict: the `SAMPLE` ones of validation with the smallest keys, by ascending key."""
    return validation.take(np.argsort(validation.keys, kind="stable")[:SAMPLE])


def predict(folder: Path, spec: TeacherSpec, sample: Examples, device: str = "cpu") -> Predictions:
    """The teacher's predictions on `sample`, their differences to those of a second replica and in fp32, and random heads' scores."""

    def replica(dtype: Dtype = spec.dtype) -> Predictor:
        return Predictor(
            folder,
            spec.task,
            dtype=dtype,
            tokens_per_forward=spec.serving.tokens_per_forward,
            device=device,
            max_length=spec.max_length,
            labels=spec.labels,
            where=f"teachers.{spec.name}",
        )

    inputs = {name: sample.inputs[name] for name in spec.task.reading.fields}
    few = {name: column[:TWICE] for name, column in inputs.items()}
    first = replica()
    if spec.task.kind.writes:
        return _written(first, replica(), inputs, few)
    logits, truncated = first.predict(inputs)
    own = first.predict(few)[0].values
    difference = relative_difference(own, replica().predict(few)[0].values)
    rounding = 0.0 if spec.dtype == "fp32" else rounding_of(own, replica("fp32").predict(few)[0].values)
    has_items = bool((logits.counts > 1).any())
    heads = random_head_scores(first, sample) if has_items else np.empty(0)
    return Predictions(logits.values, truncated, difference, rounding, heads)


def _written(
    first: Predictor, second: Predictor, inputs: Mapping[str, Sequence[Any]], few: Mapping[str, Sequence[Any]]
) -> Predictions:
    """What the teacher writes. Its difference to a second replica is the share of `few` sources for which the texts differ,
    0 where it samples."""
    texts, truncated = first.predict(inputs)
    twice = [one.predict(few)[0].values[:, 0] for one in (first, second)]
    sampled = writing_head(first.task).generation.temperature is not None
    differing = 0.0 if sampled else float((twice[0] != twice[1]).mean())
    return Predictions(texts.values, truncated, differing)


# ---------------------------------------------------------------- all teachers, on Ray or here


def preflight(
    specs: Sequence[TeacherSpec],
    validation: Mapping[str, Examples],
    cache: Path,
    *,
    on_ray: bool,
    check: Callable[[], None] = lambda: None,
    curves: Mapping[str, Curve] = MappingProxyType({}),
    patience: Patience = PATIENCE,
) -> list[Findings]:
    """Every teacher's findings, from predictions that are in `cache` or are computed now; blocks.

    curves: of the fine-tuned teachers, by name. Raises the error of any teacher, and any error of `check`, which is called about twice a second.
    """
    samples = {task: sample_of(examples) for task, examples in validation.items()}
    files = {spec.name: _file(cache, spec, samples[spec.task.name]) for spec in specs}
    predictions = {spec.name: _cached(files[spec.name], spec, samples[spec.task.name]) for spec in specs}
    missing = [spec for spec in specs if predictions[spec.name] is None]
    computed_ones = (
        _predict_on_ray(missing, samples, check, patience) if on_ray else _predict_here(missing, samples)
    )
    for spec, computed in zip(missing, computed_ones, strict=True):
        predictions[spec.name] = computed
        write_atomically(files[spec.name], _to_bytes(computed))
    complete = {name: one for name, one in predictions.items() if one is not None}
    findings = [
        (judge_texts if spec.task.kind.writes else judge)(
            spec.name,
            spec.task,
            samples[spec.task.name],
            complete[spec.name],
            curves.get(spec.name, NO_CURVE),
        )
        for spec in specs
    ]
    values = {name: one.values for name, one in complete.items()}
    return with_agreement(findings, values, {spec.task.name: spec.task for spec in specs}, samples)


def _predict_here(specs: Sequence[TeacherSpec], samples: Mapping[str, Examples]) -> list[Predictions]:
    return [
        predict(resolve(spec.model, spec.revision, f"teachers.{spec.name}"), spec, samples[spec.task.name])
        for spec in specs
    ]


def _predict_on_ray(
    specs: Sequence[TeacherSpec],
    samples: Mapping[str, Examples],
    check: Callable[[], None],
    patience: Patience,
) -> list[Predictions]:
    import ray

    by_name = {spec.name: spec for spec in specs}

    def start(name: str, place: Place) -> ray.ObjectRef[Any]:
        spec = by_name[name]
        remote = ray.remote(_predict_task).options(**place.options, max_retries=spec.serving.restarts)
        return remote.remote(spec, samples[spec.task.name])

    def poll(running: Mapping[str, float]) -> None:
        check()
        for name, seconds in running.items():
            limit = by_name[name].serving.timeout_s
            if seconds > limit:
                raise ExhaustedError(
                    f"preflight of {name}: no answer for {limit:g} s",
                    f"See the node's load, or raise teachers.{name}.serving.timeout_s.",
                )

    needs = {name: requested(spec.serving) for name, spec in by_name.items()}
    # Those left when one fails end by themselves: Ray 2.60 aborts the driver when it cancels a task that just ends.
    done = {name: _result(by_name[name], ref) for name, ref in run_placed(needs, start, patience, poll)}
    return [done[spec.name] for spec in specs]


def _result(spec: TeacherSpec, ref: Any) -> Predictions:
    """A teacher's predictions, of a task that has ended."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        predictions: Predictions = ray.get(ref, timeout=spec.serving.timeout_s)
        return predictions
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


def _predict_task(spec: TeacherSpec, sample: Examples) -> Predictions:
    import ray

    torch.set_num_threads(max(1, int(spec.serving.cpus)))
    folder = resolve(spec.opened, spec.revision, f"teachers.{spec.name}")
    return predict(folder, spec, sample, "cuda" if ray.get_gpu_ids() else "cpu")


# ---------------------------------------------------------------- the cache


def _file(cache: Path, spec: TeacherSpec, sample: Examples) -> Path:
    """The file of a teacher's predictions, named by a hash of all that decides them and the random heads' scores."""
    other_columns = [column for name, column in sample.inputs.items() if name not in spec.task.reading.fields]
    facts: list[Any] = [
        FORMAT,
        TWICE,
        HEADS,
        HEAD_EXAMPLES,
        spec.task.scoring.metric,
        spec.task.reading.labels,
        other_columns,
    ]
    digest = blake2b(json.dumps(facts).encode(), digest_size=8)
    digest.update(sample.keys.tobytes() + sample.labels.values.tobytes())
    return cache / f"{spec.key}-{digest.hexdigest()}.safetensors"


def _to_bytes(predictions: Predictions) -> bytes:
    arrays = {
        "values": predictions.values,
        "truncated": np.array(predictions.truncated),
        "replica_difference": np.array(predictions.replica_difference),
        "rounding": np.array(predictions.rounding),
        "random_head_scores": predictions.random_head_scores,
    }
    return save(numbers_of(arrays))


def _cached(file: Path, spec: TeacherSpec, sample: Examples) -> Predictions | None:
    """The predictions in `file`; None where it cannot be read or does not fit, so that they are computed again."""
    try:
        arrays = arrays_of(load(file.read_bytes()))
        predictions = Predictions(
            arrays["values"],
            int(arrays["truncated"]),
            float(arrays["replica_difference"]),
            float(arrays["rounding"]),
            arrays["random_head_scores"],
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    if spec.task.kind.writes:
        return predictions if len(predictions.values) == len(sample) else None
    shape = (int(spec.task.reading.counts(sample.inputs).sum()), len(spec.task.head.columns))
    return predictions if predictions.values.shape == shape else None
