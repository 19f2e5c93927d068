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
from pipeline.tasks.generation import generation_settings, know_ends
from pipeline.tasks.heads import model_class
from pipeline.tasks.hearing import SpeechHead
from pipeline.tasks.listening import is_multilingual, open_extractor
from pipeline.tasks.writing import writing_head
from students.student import MultiTaskStudent


def save_task(student: MultiTaskStudent, task: str, tokenizer: Any, folder: Path) -> None:
    """Replaces `folder` by the task's model and tokenizer, in the form that `from_pretrained` reads.

    Where the task's kind writes, by a decoder, its generation_config.json has the settings by which the student writes.
    """
    model, own = student.model(task), student.tasks[task]
    scratch = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    if own.kind.writes:
        head = writing_head(own)
        if model.can_generate():
            know_ends(model, tokenizer)
            model.generation_config.update(**generation_settings(head.generation, head.target_length))
        if isinstance(head, SpeechHead):
            open_extractor(Path(tokenizer.name_or_path)).save_pretrained(scratch)
        if isinstance(head, SpeechHead) and model.can_generate():
            for name, value in _spoken(
                model, head, tokenizer
            ).items():  # `update` leaves out what only Whisper's have
                setattr(model.generation_config, name, value)
        model.save_pretrained(scratch)
    else:
        with torch.device("meta"):
            # the shared encoder may have a pooler that this class of models lacks
            expected = type(model)(model.config).state_dict().keys()
        state = {name: tensor for name, tensor in model.state_dict().items() if name in expected}
        model.save_pretrained(scratch, state_dict=state)
    tokenizer.save_pretrained(scratch)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.replace(folder)


def _spoken(model: Any, head: SpeechHead, tokenizer: Any) -> dict[str, Any]:
    """The settings by which Whisper's own `generate` begins with the prompt by which the student was trained and scored."""
    prompt, several = head.listener(tokenizer).prompt, is_multilingual(model.config)
    settings = {
        "_from_model_config": False,  # else transformers makes it anew, without what only Whisper's have
        "no_timestamps_token_id": prompt[-1],
        "return_timestamps": False,
        "is_multilingual": several,
    }
    return {**settings, "language": head.generation.language, "task": "transcribe"} if several else settings


def export_onnx(model_folder: Path, kind: Kind, target: Path) -> float:
    """Writes `target`/model.onnx with dynamic batch and length; returns the largest absolute difference of its outputs
    from PyTorch's, on a padded batch of two.

    Raises `ConfigError` for a kind that writes, and where the `onnx` extra is not installed, and `DataError` if the difference exceeds 1e-3.
    """
    if kind.writes:
        raise ConfigError(
            f"--onnx: {kind.name} models are not exported here: those that write token by token are no single graph",
            "Export it without --onnx; optimum exports the folder.",
        )
    missing = [
        name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ConfigError(
            f"--onnx needs {', '.join(missing)}",
            "Install the project's extra, from its folder: pip install -e '.[onnx]'.",
        )
    import onnxruntime

    model = open_model(model_class(kind), model_folder, attn_implementation="eager")
    tokenizer = open_tokenizer(model_folder)
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
    exported = session.run(outputs, {name: tensor.numpy() for name, tensor in batch.items()})
    difference = max(
        float((torch.from_numpy(output) - expected[name]).abs().max())
        for name, output in zip(outputs, exported, strict=True)
    )
    if difference > 1e-3:
        raise DataError(
            f"{file}: the ONNX model's outputs differ by {difference:.2g}",
            "Use the Hugging Face folder; report this model.",
        )
    return difference
