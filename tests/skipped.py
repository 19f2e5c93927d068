"""The last line of `make test`: which tests were skipped, and the command that enables each.

A reason for skipping is written as ``why: command``, or as ``why`` alone where no command helps on this machine.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def summary(reasons: Sequence[str]) -> str:
    """One line for the reasons, one of which stands for each skipped test."""
    if not reasons:
        return "skipped: nothing"
    parts = []
    for reason, count in sorted(Counter(reasons).items()):
        why, _, command = reason.partition(": ")
        parts.append(f"{count} ({why})" + (f", enabled by `{command}`" if command else ""))
    return f"skipped: {'; '.join(parts)}"


if __name__ == "__main__":
    file = Path(sys.argv[1])
    print(summary(file.read_text(encoding="utf-8").splitlines() if file.exists() else []))
