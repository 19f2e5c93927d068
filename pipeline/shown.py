"""Numbers and tables as text: points, percent, spreads, p values, Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pipeline.config.kinds import METRICS
from pipeline.significance import Spread

NOTHING = "–"


def counted(number: int, what: str) -> str:
    """1 → `1 epoch`, 1200 → `1,200 epochs`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def points(share: float) -> str:
    """0.8619 → `86.2`."""
    return f"{100 * share:.1f}"


def in_points(metric: str) -> bool:
    """Whether a metric is shown in points of a hundred. metric: `accuracy` or `<task>/accuracy`."""
    declared = METRICS.get(metric.rpartition("/")[2])  # None for macro/score, a mean of shares
    return declared is None or declared.shown == "points"


def measured(metric: str, value: float) -> str:
    """A metric's value: 0.8619 → `86.2`, an error's 0.8619 → `0.862`."""
    return points(value) if in_points(metric) else f"{value:.3f}"


def signed(share: float) -> str:
    """0.023 → `+2.3`, −0.004 → `−0.4`, a difference that rounds to nothing → `0.0`."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def percent(share: float | None) -> str:
    """0.979 → `97.9%`, None → `–`."""
    return NOTHING if share is None else f"{100 * share:.1f}%".replace("-", "−")


def recovered(gap: float | None) -> str:
    """Gap recovered: 0.52 → `52.0%`, None → `–`.

    Outside 0 to 100% it is words, since the size of the ratio then depends on the gap more than on the student.
    """
    if gap is None or 0 <= gap <= 1:
        return percent(gap)
    return "below baseline" if gap < 0 else "above ensemble"


def plus_minus(spread: Spread | None, show: Callable[[float], str] = points) -> str:
    """`81.5 ± 0.4`: mean and standard deviation over seeds; `81.5` for one seed or a deviation of 0, None → `–`."""
    if spread is None:
        return NOTHING
    return show(spread.mean) + (f" ± {points(spread.sd)}" if spread.sd else "")


def p_value(p: float | None) -> str:
    """0.0078125 → `0.0078`, 1.0 → `1`, below a thousandth → `<0.001`, None → `–`."""
    if p is None:
        return NOTHING
    return "<0.001" if p < 0.001 else f"{p:.2g}"


def millions(parameters: int) -> str:
    """22713216 → `22.7M`."""
    return f"{parameters / 1e6:.1f}M"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A Markdown table. The first `words` columns are aligned left, the others, which are numbers, right."""
    lines = [head, [*["---"] * words, *["---:"] * (len(head) - words)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
