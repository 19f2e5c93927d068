"""Runs the examples of README and docs/, as they stand there, on tiny models and data: `make docs-check`.

Every command line and every Python block of the pages runs in one folder, which has a `run.yaml` (README's config) and
the examples' configs, their models and data replaced by tiny ones. Configs and the syntax of commands are checked in
tests/unit/test_docs.py.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import TinyModel, texts_of, write_csv
from tests.integration.command import tutelage

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ELSEWHERE = {  # what a line starts with → what runs it
    "make ": "CI and whoever follows README",
    "pip ": "make install, make lock",
    "ray ": "needs a cluster; tests/unit/test_cluster_yaml.py reads cluster.yaml",
    "docker ": "needs docker; tests/unit/test_rayjob.py builds the package from what the Dockerfile copies",
    "kubectl ": "needs Kubernetes; tests/unit/test_rayjob.py reads rayjob.yaml",
    "python examples/mlflow_server.py": "tests/integration/test_postgres.py",
    "tutelage train examples/quickstart.yaml tracking.uri=": "tests/integration/test_postgres.py",
    "tutelage store examples/quickstart.yaml --remove": "it asks; tests/unit/pipeline/test_cli.py",
    "tutelage ui ": "tests/integration/test_ui.py",
}
FIRST = ("tutelage train run.yaml", "tutelage train examples/quickstart.yaml")
"""What the other lines read the results of."""
LABELS: Mapping[str, Sequence[str]] = {"tweets": ("bad", "good", "plain"), "others": ("bad", "good")}


def blocks(language: str) -> list[str]:
    """The pages' fenced blocks in a language."""
    texts = (page.read_text(encoding="utf-8") for page in PAGES)
    return [block for text in texts for name, block in FENCE.findall(text) if name == language]


def command_lines() -> list[str]:
    """The pages' shell commands, without their comments, each once; those that others need come first."""
    lines = [
        shlex.join(shlex.split(line, comments=True)) for block in blocks("sh") for line in block.splitlines()
    ]
    return list(dict.fromkeys([*FIRST, *(line for line in lines if line)]))


def elsewhere(line: str) -> bool:
    return line.startswith(tuple(ELSEWHERE))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: TinyModel) -> Path:
    """Where a user stands: run.yaml, examples/ and their data."""
    root = tmp_path_factory.mktemp("user")
    configs = {"run.yaml": blocks("yaml")[0]}
    for name in ("quickstart", "search"):
        configs[f"examples/{name}.yaml"] = (ROOT / "examples" / f"{name}.yaml").read_text(encoding="utf-8")
    for name, text in configs.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(
            yaml.safe_dump(shrunk(yaml.safe_load(text), root, tiny_model), sort_keys=False)
        )
    showcase = yaml.safe_load((root / "examples" / "quickstart.yaml").read_text())
    (root / "showcase.yaml").write_text(yaml.safe_dump({**showcase, "name": "showcase"}, sort_keys=False))
    assert tutelage("train", "showcase.yaml", cwd=root).process.returncode == 0
    return root


def shrunk(config: dict[str, Any], root: Path, tiny_model: TinyModel) -> dict[str, Any]:
    """The config with tiny models, a hundred texts a task and one epoch; all else as it stands."""
    tasks = {
        name: {**task, "data": tiny_data(name, task["data"], root)} for name, task in config["tasks"].items()
    }
    labels = {name: labels_of(name, task["data"]) for name, task in tasks.items()}
    bare = str(tiny_model("bert", layers=4))
    teachers = {}
    for name, teacher in config["teachers"].items():
        made = "fine_tune" in teacher
        model = bare if made else str(tiny_model("bert", labels[teacher["task"]], layers=4))
        small = {"fine_tune": {"epochs": 1}} if made else {}
        # nobody expects a model of four tiny layers to be worth distilling
        teachers[name] = {**teacher, "model": model, **small, "preflight": "warn"}
    students = {
        name: {**student, **({"model": bare} if "model" in student else {}), "train": {"epochs": 1}}
        for name, student in config["students"].items()
    }
    tune = (
        {"tune": {**config["tune"], "trials": 2, "grace_epochs": 1}, "seeds": [0, 1]}
        if "tune" in config
        else {}
    )
    return {**config, "tasks": tasks, "teachers": teachers, "students": students, **tune}


def labels_of(task: str, data: Mapping[str, Any]) -> Sequence[str]:
    """Label names of a task: as its config lists them, or two."""
    labels: Sequence[str] = data.get("labels") or LABELS.get(task, LABELS["others"])
    return labels


def tiny_data(task: str, data: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """A `data` section like the given one, on csv files just written."""
    columns, labels = data.get("columns", {}), labels_of(task, data)
    rows = [
        {columns.get("text", "text"): text, columns.get("label", "label"): label}
        for number, label in enumerate(labels)
        for text in texts_of(number, 60, seed=len(task))
    ]
    whole = list(data.get("data_files", {"train": ""})) == ["train"]
    parts = {"train": rows} if whole else {"train": rows[::2], "validation": rows[1::4], "test": rows[3::4]}
    files = {
        split: str(write_csv(root / "data" / task / f"{split}.csv", part)) for split, part in parts.items()
    }
    kept = {key: value for key, value in data.items() if key in ("columns", "labels")}
    return {"path": "csv", "data_files": files, "max_length": 32, "holdout": 0.2, **kept}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("line", [line for line in command_lines() if not elsewhere(line)])
def test_the_command_line_works(line: str, folder: Path) -> None:
    words = shlex.split(line)
    assert words[0] == "tutelage", "say in ELSEWHERE what runs it"
    output = words.index(">") if ">" in words else len(words)
    command = tutelage(*words[1:output], cwd=folder, timeout_s=800)
    assert command.process.returncode == 0, command.output


def test_what_runs_elsewhere_is_in_the_pages() -> None:
    lines = command_lines()
    assert [start for start in ELSEWHERE if not any(line.startswith(start) for line in lines)] == []


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_python_works(number: int, folder: Path) -> None:
    python = blocks("python")[number]
    done = subprocess.run(
        [sys.executable, "-c", python], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "score" in done.stdout
