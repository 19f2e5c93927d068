"""A Hugging Face folder as an MLflow model: the files that MLflow needs in addition to open it.

Not covered: a pipeline with other inputs than texts has no signature here; `mlflow.transformers` still loads it.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
from importlib.metadata import version
from pathlib import Path

WEIGHTS = (".safetensors", ".onnx", ".bin")
OUTPUTS = {
    "text-classification": (("label", "string"), ("score", "double")),
    "token-classification": ((None, "string"),),
}


def describe_model(target: Path, folder: Path, name: str, task: str, run_id: str, model_id: str) -> None:
    """Write the files that make `folder`, uploaded as `model/`, an MLflow model: MLmodel, tokenizer, requirements."""
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    components = {"tokenizer": "AutoTokenizer"}
    if (folder / "preprocessor_config.json").is_file():  # of a model of speech
        components["feature_extractor"] = "AutoFeatureExtractor"
    for component in components:
        (target / "components" / component).mkdir(parents=True)
        for file in folder.iterdir():
            if file.is_file() and file.suffix not in WEIGHTS:
                shutil.copyfile(file, target / "components" / component / file.name)
    packages = {package: version(package).split("+")[0] for package in ("mlflow", "torch", "transformers")}
    (target / "requirements.txt").write_text(
        "".join(f"{package}=={number}\n" for package, number in packages.items())
    )
    environment = f"python: {platform.python_version()}\ndependencies:\n- -r requirements.txt\n"
    (target / "python_env.yaml").write_text(environment)
    model = Model(run_id=run_id, model_id=model_id, model_uuid=model_id)
    model.model_size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    model.add_flavor(
        "transformers",
        task=task,
        instance_type="".join(word.title() for word in task.split("-")) + "Pipeline",
        pipeline_model_type=json.loads((folder / "config.json").read_text("utf-8"))["architectures"][0],
        source_model_name=name,
        model_binary="model",
        components=list(components),
        **{f"{component}_type": name for component, name in components.items()},
        transformers_version=packages["transformers"],
        code=None,
    )
    if task in OUTPUTS:
        outputs = Schema([ColSpec(kind, name=column) for column, kind in OUTPUTS[task]])
        model.signature = ModelSignature(inputs=Schema([ColSpec("string")]), outputs=outputs)
        pyfunc.add_to_model(model, loader_module="mlflow.transformers", python_env="python_env.yaml")
    model.save(str(target / "MLmodel"))


def digest(folder: Path) -> str:
    """Hash of the names and contents of the folder's files."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no config.json in {folder}")
    total = hashlib.blake2b(digest_size=16)
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        total.update(f"{file.relative_to(folder)}\0".encode())
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "blake2b").digest())
    return total.hexdigest()


def logged_name(name: str) -> str:
    """`name` without the characters that MLflow refuses in the name of a logged model."""
    return re.sub(r"[/:.%\"']", "-", name)


def registered_name(name: str) -> str:
    """`name` without the characters that MLflow refuses in the name of a registered model."""
    return re.sub(r"[/:]", "-", name)
