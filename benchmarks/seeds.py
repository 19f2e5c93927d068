"""Runs of one config under several seeds → one table: mean and range of every score.

    for s in 0 1 2; do tutelage train examples/showcase.yaml name=showcase-$s seed=$s; done
    python -m benchmarks.seeds runs/showcase-0 runs/showcase-1 runs/showcase-2

Teachers and soft targets are made by the first run and shared by the others.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main() -> None:
    reports = [json.loads((Path(path) / "report.json").read_text()) for path in sys.argv[1:]]
    if not reports:
        sys.exit("usage: python -m benchmarks.seeds RUN_FOLDER...")
    print(
        f"{len(reports)} seeds: {', '.join(str(report['seed']) for report in reports)}; mean (lowest-highest), in points\n"
    )
    students = list(reports[0]["macro"]["students"])
    print(
        "| task | teachers | ensemble | student | distilled | labels alone | Δ by seed | retention | gap recovered |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for task in [*reports[0]["tasks"], "macro"]:
        for student in students:
            print(
                row(
                    task,
                    student,
                    [report["macro"] if task == "macro" else report["tasks"][task] for report in reports],
                )
            )


def row(task: str, student: str, sections: Sequence[dict[str, Any]]) -> str:
    scored = [section["students"][student] for section in sections]
    score, supervised = ([one[key] for one in scored] for key in ("score", "supervised"))
    ensemble = [section["ensemble"] for section in sections]
    teachers = ", ".join(points([value]) for value in sections[0].get("teachers", {}).values()) or "–"
    deltas = [a - b for a, b in zip(score, supervised, strict=True)]
    mean = statistics.mean
    gap = mean(ensemble) - mean(supervised)
    recovered = f"{100 * mean(deltas) / gap:.0f}%" if gap >= 0.005 else "no gap"
    shown = " ".join(f"{100 * delta:+.1f}" for delta in deltas)
    retention = f"{100 * mean(score) / mean(ensemble):.1f}%"
    cells = [task, teachers, points(ensemble), student, points(score), points(supervised)]
    return f"| {' | '.join(cells)} | {100 * mean(deltas):+.1f} ({shown}) | {retention} | {recovered} |"


def points(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    spread = "" if high - low < 5e-5 else f" ({100 * low:.1f}-{100 * high:.1f})"
    return f"{100 * statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
