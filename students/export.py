"""A trained student → one plain Hugging Face folder a task; ONNX on request."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import torch

from pipeline.config.kinds import Kind
from pipeline.errors import ConfigError, DataError
from pipeline.models import open_model, open_tokenizer
from pipeline.tasks.heads import model_class
from students.student import MultiTaskStudent


def save_task(student: MultiTaskStudent, task: str, tokenizer: Any, folder: Path) -> None:
    """Writes the task's model and tokenizer to `folder` (replaced whole), as `from_pretrained` reads them."""
    model = student.model(task)
    with torch.device("meta"):
        expected = (
            type(model)(model.config).state_dict().keys()
        )  # a shared encoder may hold a pooler the class has not
    state = {name: tensor for name, tensor in model.state_dict().items() if name in expected}
    scratch = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    model.save_pretrained(scratch, state_dict=state)
    tokenizer.save_pretrained(scratch)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.replace(folder)


def export_onnx(model_folder: Path, kind: Kind, target: Path) -> float:
    """Writes `target`/model.onnx with dynamic batch and length; returns the largest difference of its outputs.

    The difference is measured by ONNX Runtime on a padded batch of two. Raises `ConfigError` where the
    `onnx` extra is not installed and `DataError` if the two disagree.
    """
    absent = [
        name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None
    ]
    if absent:
        raise ConfigError(
            f"--onnx needs {', '.join(absent)}",
            "Install the project's extra, from its folder: pip install -e '.[onnx]'.",
        )
    import onnxruntime

    model, tokenizer = (
        open_model(model_class(kind), model_folder, attn_implementation="eager"),
        open_tokenizer(model_folder),
    )
    outputs = list(kind.outputs)
    batch = dict(tokenizer(["a first text of some length", "another"], padding=True, return_tensors="pt"))
    target.mkdir(parents=True, exist_ok=True)
    file = target / "model.onnx"
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        model,
        kwargs=batch,
        f=str(file),
        input_names=list(batch),
        output_names=outputs,
        dynamic_shapes=dict.fromkeys(batch, axes),
        external_data=False,
        dynamo=True,
        verbose=False,
    )
    with torch.no_grad():
        expected = model(**batch)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run(outputs, {name: tensor.numpy() for name, tensor in batch.items()})
    difference = max(
        float((torch.from_numpy(one) - expected[name]).abs().max())
        for name, one in zip(outputs, found, strict=True)
    )
    if difference > 1e-3:
        raise DataError(
            f"{file}: the ONNX model's outputs differ by {difference:.2g}",
            "Use the Hugging Face folder; report this model.",
        )
    return difference
