"""What the derived defaults are worth: distilled − labels alone on each of the project's data sets, over seeds.

    python -m benchmarks.defaults [--sets movies r52 …] [--seeds 3] [--to build/defaults] [-- key=value …]

Goal: no set on which a student ends behind its supervised baseline. Each set is a run of its own, by the command that a
user types, from a config that names a task, a teacher (MiniLM of 6 layers, to fine-tune) and a student (BERT-tiny): how
they are trained is derived. Teachers and soft targets are made once for all seeds. `examples/fetch_assets.py all`
fetches the data. An interrupted benchmark goes on where it stopped; `key=value` changes every config, `name` included.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import ASSETS, machine, mean_and_error
from benchmarks.parity import write_passages
from pipeline.config.fields import SPLITS
from pipeline.config.load import load_config
from pipeline.report.schema import Report

TUTELAGE = str(Path(sys.executable).parent / "tutelage")
STUDENT, TEACHER, TASK = "tiny", "minilm", "task"


def task(
    suffix: str, limits: tuple[int, int, int], kind: str = "text-classification", **data: Any
) -> dict[str, Any]:
    """A task's section without its files. limits: examples of train, validation and test."""
    return {"kind": kind, "data": {"path": suffix, "limit": dict(zip(SPLITS, limits, strict=True)), **data}}


SETS: Mapping[str, dict[str, Any]] = {
    "amazon": task("csv", (2000, 400, 1000), max_length=64),
    "movies": task("csv", (2000, 400, 2000), max_length=64),
    "tweets": task("csv", (2000, 400, 3000), max_length=64),
    "strength": task("csv", (2000, 400, 3000), max_length=64, columns={"label": "score"})
    | {"problem": "regression"},
    "newsgroups": task("csv", (2000, 400, 3000), max_length=48),
    "r52": task("csv", (2000, 400, 2553), max_length=48),
    "conll2003": task(
        "json", (2000, 400, 3000), "token-classification", columns={"labels": "tags"}, max_length=64
    ),
    "boolq": task(
        "json", (2000, 400, 2000), columns={"text": "question", "text_pair": "passage"}, max_length=96
    )
    | {"metric": "macro_f1"},
    "qa": task(
        "json",
        (2000, 200, 500),
        "question-answering",
        columns={"answer_starts": "answer_starts"},
        max_length=128,
    ),
}
"""Sub-sampled for two cores; the contexts of qa are passages of `PASSAGE` words, as in `benchmarks.parity`."""
PASSAGE = 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--to", type=Path, default=Path("build/defaults"), help="default: %(default)s")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    print(f"{machine()}; seeds 0 to {arguments.seeds - 1}; points on test", flush=True)
    print("| set | teacher | distilled | labels alone | Δ ± standard error over seeds | Δ by seed | how |")
    for name in arguments.sets:
        config = write_config(name, arguments.seeds, arguments.to)
        command = [TUTELAGE, "train", str(config), *arguments.overrides]
        with config.with_suffix(".log").open("a") as log:
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
        run = load_config(str(config), arguments.overrides)
        folders = [Path(run.runs_dir, f"{run.name}-seed{seed}") for seed in range(arguments.seeds)]
        print(
            row(name, [Report.model_validate_json((f / "report.json").read_text()) for f in folders]),
            flush=True,
        )


def write_config(name: str, seeds: int, folder: Path) -> Path:
    """Writes the config of a set: a task, its teacher, a student; returns its path."""
    section = SETS[name]
    suffix = {"json": "jsonl"}.get(section["data"]["path"], section["data"]["path"])
    source = ASSETS / name
    if section["kind"] == "question-answering":
        source = write_passages(source, folder / "passages", PASSAGE)
    files = {split: str((source / f"{split}.{suffix}").absolute()) for split in SPLITS}
    config = {
        "name": name,
        "runs_dir": str((folder / "runs").absolute()),
        "seeds": list(range(seeds)),
        "tasks": {TASK: section | {"data": section["data"] | {"data_files": files}}},
        "teachers": {
            TEACHER: {"task": TASK, "model": str((ASSETS / "minilm-l6").absolute()), "fine_tune": {}}
        },
        "students": {STUDENT: {"model": str((ASSETS / "bert-tiny").absolute())}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file


def row(name: str, reports: Sequence[Report]) -> str:
    """One line of the table. reports: of the seeds, in order."""
    sections = [report.tasks[TASK] for report in reports]
    students = [section.students[STUDENT] for section in sections]
    alone = [student.supervised or float("nan") for student in students]
    deltas = [100 * (student.score - score) for student, score in zip(students, alone, strict=True)]
    mean, error = mean_and_error(deltas)
    recipe = reports[0].recipes[STUDENT]
    loss = recipe.loss[TASK]
    cells = [
        f"{name} ({sections[0].metric})",
        f"{100 * sections[0].teachers[TEACHER]:.1f}",
        f"{100 * statistics.mean(student.score for student in students):.1f}",
        f"{100 * statistics.mean(alone):.1f}",
        f"{mean:+.1f} ± {error:.1f}",
        " ".join(f"{delta:+.1f}" for delta in deltas),
        f"{recipe.epochs} epochs, temperature {loss.temperature:g}, hard {loss.hard:g}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
