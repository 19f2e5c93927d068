"""What each ingredient of a config is worth: the config's student, with one ingredient more in each row.

    python -m benchmarks.ablation CONFIG.yaml --student tiny [--seeds 1] [--rows …] [-- key=value …]

Every row is a run of `tutelage train` of its own, named `<name>-ablation-<row>`, in the config's `runs_dir`: teachers and
soft targets are those of the config. The first row is the config without its texts and signals: soft targets of the
labelled texts alone, at the derived length; the supervised baseline is trained in that row. Then come, one on top of
another, what the config adds: `data.unlabelled`, `transfer`, `augment`, its epochs, hidden states (its stages, given or
derived), `train.task_focus`. A row whose ingredient the config does not have is left out. A gap recovered is
(student − baseline) ÷ (ensemble − baseline), on test, in percent; minutes are those of the student's epochs. An
interrupted ablation goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from benchmarks.common import machine
from pipeline.config.load import load_config
from pipeline.config.resolved import Job
from pipeline.report.schema import Report
from pipeline.run_folder import job_folder
from pipeline.training.result import read_facts

TUTELAGE = str(Path(sys.executable).parent / "tutelage")
FIRST = "labelled texts"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("--student", required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="these alone, beside the first")
    parser.add_argument("--to", type=Path, default=Path("build/ablation"), help="default: %(default)s")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    config = yaml.safe_load(Path(arguments.config).read_text())
    print(
        f"{machine()}; seeds 0 to {arguments.seeds - 1}; points on test, gap recovered in brackets",
        flush=True,
    )
    print(f"| row | {' | '.join(config['tasks'])} | macro | minutes |", flush=True)
    base: list[Report] = []
    for number, (name, section) in enumerate(rows_of(config, arguments.student).items()):
        if name != FIRST and name not in (arguments.rows or [name]):
            continue
        runs = []
        for seed in range(arguments.seeds):
            section["name"], section["seed"] = f"{config['name']}-ablation-{number}-seed{seed}", seed
            runs.append(run(section, arguments.student, arguments.to, arguments.overrides))
        base = base or [report for report, _ in runs]
        print(row(name, arguments.student, runs, base), flush=True)


def rows_of(config: Mapping[str, Any], student: str) -> dict[str, dict[str, Any]]:
    """The config of each row, by its name, the first one without any ingredient. config: as written, of one student."""
    rows: dict[str, dict[str, Any]] = {}
    current = {
        **copy.deepcopy(dict(config)),
        "students": {student: copy.deepcopy(config["students"][student])},
    }
    for name, without in reversed(list(INGREDIENTS.items())):
        less = copy.deepcopy(current)
        without(less, less["students"][student])
        if less != current:
            rows[f"+ {name}"] = current | {"baselines": []}
            current = less
    return {FIRST: current} | dict(reversed(rows.items()))


def without_length(config: dict[str, Any], student: dict[str, Any]) -> None:
    for train in (config.get("train", {}), student.get("train", {})):
        train.pop("epochs", None)


def without_task_key(*path: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Takes a key away from every task."""

    def without(config: dict[str, Any], student: dict[str, Any]) -> None:
        for task in config["tasks"].values():
            for part in path[:-1]:
                task = task.get(part, {})
            task.pop(path[-1], None)

    return without


def without_stages(config: dict[str, Any], student: dict[str, Any]) -> None:
    student.pop("stages", None)
    config["stages"] = []  # left out, they are derived


def without_focus(config: dict[str, Any], student: dict[str, Any]) -> None:
    for train in (config.get("train", {}), student.get("train", {})):
        train.pop("task_focus", None)


INGREDIENTS: Mapping[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "unlabelled texts": without_task_key("data", "unlabelled"),
    "texts of other tasks": without_task_key("transfer"),
    "variants": without_task_key("augment"),
    "the config's epochs": without_length,
    "hidden states": without_stages,
    "worst task first": without_focus,
}
"""What takes an ingredient away from a config and its student, by the row that adds it, in the order of the rows."""


def run(
    section: Mapping[str, Any], student: str, folder: Path, overrides: Sequence[str]
) -> tuple[Report, float]:
    """Trains a row under a seed; returns its report and the minutes of the student's epochs."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{section['name']}.yaml"
    file.write_text(yaml.safe_dump(section, sort_keys=False))
    with file.with_suffix(".log").open("a") as log:
        subprocess.run(
            [TUTELAGE, "train", str(file), *overrides], check=True, stdout=log, stderr=subprocess.STDOUT
        )
    run_dir = load_config(str(file), overrides).run_dir
    facts = read_facts(job_folder(run_dir, Job(student, "distilled")))
    report = Report.model_validate_json((run_dir / "report.json").read_text())
    return report, sum(facts["epoch_seconds"]) / 60


def row(name: str, student: str, runs: Sequence[tuple[Report, float]], base: Sequence[Report]) -> str:
    """One line of the table. base: the reports of the first row, by seed, whose baselines count."""
    cells, scores, gaps = [], [], []
    for task in base[0].tasks:
        score = mean(report.tasks[task].students[student].score for report, _ in runs)
        alone = mean(report.tasks[task].students[student].supervised or float("nan") for report in base)
        ensemble = mean(report.tasks[task].ensemble for report, _ in runs)
        gap = (score - alone) / (ensemble - alone)
        cells.append(f"{100 * score:.1f} ({100 * gap:.0f})")
        scores.append(score)
        gaps.append(gap)
    minutes = mean(minutes for _, minutes in runs)
    return f"| {name} | {' | '.join(cells)} | {100 * mean(scores):.1f} ({100 * mean(gaps):.0f}) | {minutes:.0f} |"


if __name__ == "__main__":
    main()
