"""report.json → report.md, and the verdict in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from pipeline.config.kinds import hears, writes
from pipeline.config.recipe import TaskLoss
from pipeline.report.schema import (
    Advice,
    Latency,
    LossRecord,
    Metrics,
    PreflightFindings,
    Report,
    Size,
    StageRecord,
    StudentRecord,
    StudentScores,
    TaskReport,
    VariantsRecord,
    WrittenExample,
)
from pipeline.shown import NOTHING, markdown_table, measured, millions, percent, points, recovered, signed
from pipeline.significance import CLEAR_GAP

CLEAR_ERRORS = 2.0  # a difference within this many standard errors is called noise
LONGEST_CELL = 240
"""Characters of a text that a table shows."""
COMPARED = ("supervised", "Δ", "retention", "gap recovered ¹")


def markdown(report: Report, figures: Sequence[str] = (), links: Mapping[str, str] | None = None) -> str:
    """report.md's text. figures: file names under figures/; the page shows those that have a place in it · links: see
    `links_section`."""
    blocks = [
        f"# {report.name}",
        verdict(report),
        *_advice_section(report),
        *_picture("retention.png", "Share of the ensemble", figures),
    ]
    blocks += _macro_section(report)
    for task, values in report.tasks.items():
        blocks += _task_section(task, values, figures)
    if "curves.png" in figures:
        blocks += ["## Learning curves", *_picture("curves.png", "Validation score by epoch", figures)]
    blocks += _training_section(report)
    blocks += [*_preflight_section(report.preflight), *_cost_section(report), *_run_section(report)]
    blocks += links_section(links)
    return "\n\n".join(blocks) + "\n"


def verdict(report: Report) -> str:
    """One paragraph: the best student, its retention, its cost, and its gain from the teachers."""
    macro = report.macro
    # means over other tasks are no scores to compare: first those who learn the most
    ranked = sorted(
        macro.students, key=lambda name: (-len(macro.students[name].tasks), -macro.students[name].score)
    )
    best, row = ranked[0], macro.students[ranked[0]]
    over = _over(report, best)
    lead = f"scores {points(row.score)} points where the ensemble scores 0"
    if row.retention is not None:
        verb = "keeps" if row.retention < 1 else "reaches"
        lead = f"{verb} {percent(row.retention)} of the ensemble: {points(row.score)} points against"
        lead += f" {points(row.ensemble)}"
    sentences = [f"**{best}** {lead} ({over})."]
    if cost := _cost(report, best):
        sentences.append(f"It is {cost}.")
    sentences.append(_gain(report, best))
    for name in ranked[1:]:
        other = macro.students[name]
        cost = _cost(report, name, brief=True)
        notes = [] if other.tasks == row.tasks else [_over(report, name)]
        notes += [] if other.retention is None else [f"{percent(other.retention)} of the ensemble"]
        kept = f" ({'; '.join(notes)})" if notes else ""
        size = f" and is {cost}" if cost else ""
        sentences.append(f"**{name}** scores {points(other.score)}{kept}{size}. {_gain(report, name)}")
    if note := busy_note(report):
        sentences.append(f"How much faster is uncertain: {note}")
    return " ".join(sentences)


def _over(report: Report, student: str) -> str:
    """What a student's mean score is of: `mean of 2 tasks, accuracy`."""
    tasks = report.tasks_of(student)
    metrics = {task.metric for task in tasks.values()}
    what = metrics.pop() if len(metrics) == 1 else "each by its own metric"
    if len(tasks) == 1:
        return f"{what} on {next(iter(tasks))}"
    which = "" if len(tasks) == len(report.tasks) else f" ({', '.join(tasks)})"
    return f"mean of {len(tasks)} tasks{which}, {what}"


def advice_line(advice: Advice) -> str:
    """The measurement and what to change, in one line."""
    if advice.value is None:
        return f"{advice.text} Key: `{advice.key}`."
    return f"{advice.text} Try `{advice.key}: {_yaml(advice.value)}`."


def overview(report: Report) -> str:
    """A table of ensemble, students and baselines, best first: the score of each task, then the comparison and the cost."""
    several = len(report.tasks) > 1
    head = ["model", *(["mean"] if several else [])]
    head += [f"{name}, {task.metric}" for name, task in report.tasks.items()]
    head += ["Δ", "retention", "parameters", "ms an example"]

    def line(
        name: str, mean: float, scores: Sequence[float | None], rest: Sequence[str]
    ) -> tuple[float, list[str]]:
        by_task = [NOTHING if score is None else points(score) for score in scores]
        return mean, [name, *([points(mean)] if several else []), *by_task, *rest]

    macro, tasks = report.macro, report.tasks.values()
    lines = [line("ensemble", macro.ensemble, [task.ensemble for task in tasks], [NOTHING] * 4)]
    for name, row in macro.students.items():
        size, latency = report.size.students.get(name), report.latency.student_ms(name)
        parameters = NOTHING if size is None else millions(size.parameters)
        milliseconds = NOTHING if latency is None else f"{latency:.2f}"
        _, _, delta, kept, _ = _cells(row)
        scores = [task.students[name].score if name in task.students else None for task in tasks]
        lines.append(line(f"**{name}**", row.score, scores, [delta, kept, parameters, milliseconds]))
        if row.supervised is not None:
            baseline = [task.students[name].supervised if name in task.students else None for task in tasks]
            lines.append(
                line(f"{name}, supervised", row.supervised, baseline, [NOTHING, NOTHING, parameters, NOTHING])
            )
    return markdown_table(head, [cells for _, cells in sorted(lines, key=lambda one: -one[0])])


def links_section(links: Mapping[str, str] | None) -> list[str]:
    """The section on MLflow's pages. links: addresses by title; None where MLflow records nothing, empty where it had
    not answered when the page was written."""
    if links is None:
        return []
    if not links:
        return [
            "## MLflow",
            "MLflow had not answered when this page was written; `tutelage ui` prints the addresses.",
        ]
    lines = "\n".join(f"- [{title}]({address})" for title, address in links.items())
    served = any(address.startswith("http://127.0.0.1:") for address in links.values())
    note = "While `tutelage ui` serves them; where another program has this port, it prints the addresses with its own."
    return ["## MLflow", lines, *([note] if served else [])]


def _yaml(value: float | Mapping[str, float]) -> str:
    """A number, or numbers by name, as a config file has it."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {number:g}' for name, number in value.items())}}}"
    return f"{value:g}"


def _advice_section(report: Report) -> list[str]:
    """The section on what a next run should change; none where nothing is wrong."""
    if not report.advice:
        return []
    return ["## Advice", "\n".join(f"- {advice_line(one)}" for one in report.advice)]


def _cost(report: Report, student: str, brief: bool = False) -> str:
    """`6.3 times smaller than … and 4.6 times faster than …`, the parts that are known; brief: without `than …`."""
    ratio = report.versus_teachers[student]
    tasks = report.tasks_of(student)
    teachers = sum(len(task.teachers) for task in tasks.values())
    crowd = f"the {teachers} teachers together" if teachers > 1 else "its teacher"
    whom = "a task's teachers one after another" if teachers > len(tasks) else "a task's teacher"
    parts = [
        _times(value, *words, "" if brief else other)
        for value, words, other in (
            (ratio.times_smaller, ("smaller", "larger", "large"), crowd),
            (ratio.times_faster, ("faster", "slower", "fast"), whom),
        )
        if value is not None
    ]
    return " and ".join(parts)


def _times(ratio: float, more: str, less: str, level: str, other: str) -> str:
    """`6.3 times smaller than the teachers`, `about as large as the teachers`; other: the teachers, or nothing."""
    if round(max(ratio, 1 / ratio), 1) == 1:
        return f"about as {level}" + (f" as {other}" if other else "")
    much = f"{ratio:.1f} times {more}" if ratio > 1 else f"{1 / ratio:.1f} times {less}"
    return much + (f" than {other}" if other else "")


def _gain(report: Report, student: str) -> str:
    """Sentences on the student's gain from its teachers, over the same student trained without them."""
    row = report.macro.students[student]
    if row.supervised is None or row.delta_error is None:
        return "It has no supervised baseline in this run, so nothing here says what the teachers were worth."
    delta, error = row.score - row.supervised, row.delta_error
    size = f"{points(abs(delta))} points"
    margin = f"standard error of the difference {points(error)}"
    level = signed(delta) == "0.0"
    if delta <= 0 or level:
        how = "is level with it" if level else f"is {size} below"
        clear = delta <= -CLEAR_ERRORS * error < 0
        text = f"It does not beat its supervised baseline ({points(row.supervised)}): it {how} ({margin}). "
        text += "Here the teachers did harm." if clear else "Nothing here shows that the teachers helped."
    elif delta < CLEAR_ERRORS * error:
        text = (
            f"It is {size} above its supervised baseline ({points(row.supervised)}), which is within the noise "
            f"of this test set ({margin}): not yet evidence that the teachers helped."
        )
    else:
        text = f"It is {size} above its supervised baseline ({points(row.supervised)}; {margin})"
        gap = row.gap_recovered
        if gap is not None and gap > 1:
            text += ", and above the ensemble."
        else:
            text += "." if gap is None else f", recovering {percent(gap)} of the gap to the ensemble."
    tasks = {name: task.students[student] for name, task in report.tasks_of(student).items()}
    behind = [
        f"{name} ({signed(one.score - one.supervised)})"
        for name, one in tasks.items()
        if one.supervised is not None and one.score <= one.supervised
    ]
    if behind and delta > 0 and not level:
        text += f" On {', '.join(behind)} it does not beat it."
    return text


def _macro_section(report: Report) -> list[str]:
    macro = report.macro
    rows = [["ensemble", points(macro.ensemble), *[NOTHING] * 4]]
    some = {name: row.tasks for name, row in macro.students.items() if len(row.tasks) < len(report.tasks)}
    rows += [
        [f"**{name}**{' ²' if name in some else ''}", *_cells(row)] for name, row in macro.students.items()
    ]
    metrics = ", ".join(f"{name}: {task.metric}" for name, task in report.tasks.items())
    return [
        "## All tasks",
        f"Unweighted mean of the tasks' test scores ({metrics}), in points.",
        markdown_table(["model", "score", *COMPARED], rows),
        "Δ: student − supervised (the same student from the same start, trained on labels alone), ± its standard "
        "error, paired by example (bootstrap). Standard errors cover the choice of test examples, not of the seed: "
        "one seed is one draw" + (f", group.md of {report.group} has the others." if report.group else "."),
        "¹ (student − supervised) ÷ (ensemble − supervised). Left out (–) without a baseline, and where the ensemble "
        f"is less than {points(CLEAR_GAP)} points above it: with no gap to recover, the ratio would be noise. In words where "
        "the student scores below its baseline or above the ensemble.",
        *(
            f"² {name} learns only {', '.join(tasks)}: its mean, and the ensemble's that it is compared with "
            f"({points(macro.students[name].ensemble)}), are over these."
            for name, tasks in some.items()
        ),
    ]


def _task_section(task: str, values: TaskReport, figures: Sequence[str]) -> list[str]:
    splits = ", ".join(f"{count:,} {split}" for split, count in values.examples.items())
    labels = f"{len(values.labels)} labels; " if values.labels else ""
    baseline = "an answer that never changes scores at best"
    if writes(values.kind):
        baseline = "empty texts score" if hears(values.kind) else "copies of the sources score"
    metrics, blank = values.metrics, [NOTHING] * 5
    calibrated = "ece" in metrics.ensemble
    errors = [name for name in ("ece", "wer", "cer") if name in metrics.ensemble]

    def ece(one: Mapping[str, float]) -> list[str]:
        return [measured(name, one[name]) for name in errors]

    rows = [
        [name, points(score), *blank, *ece(metrics.teachers[name])] for name, score in values.teachers.items()
    ]
    rows.append(["ensemble", points(values.ensemble), *blank, *ece(metrics.ensemble)])
    for name, row in values.students.items():
        rows.append([f"**{name}**", *_cells(row), percent(row.agreement), *ece(metrics.students[name])])
        if row.best_teacher is not None and row.best_teacher_error is not None:
            difference = f"{signed(row.score - row.best_teacher)} ± {points(row.best_teacher_error)}"
            label = f"{name} from its best teacher alone: {name} is {difference}"
            rows.append([label, points(row.best_teacher), *blank, *[NOTHING for _ in ece(metrics.ensemble)]])
    pictures = [
        one
        for name in values.students
        for stem in ("confusion", "scatter")
        for one in _picture(f"{stem}-{name}@{task}.png", f"{name} on {task}", figures)
    ]
    head = ["model", values.metric, *COMPARED, "agreement", *(name.upper() for name in errors)]
    calibration = " ECE: expected calibration error, 15 bins." if calibrated else ""
    blocks = [
        f"## {task}",
        f"{values.kind}: {splits} examples; {labels}{baseline} "
        f"{points(values.majority)}; aggregation: {values.aggregation}. A score's standard error is "
        f"{points(values.standard_error)} points (bootstrap): read smaller differences between models as noise.",
        markdown_table(head, rows),
        f"Agreement: share of answers in which the student agrees with the ensemble.{calibration}",
        *(f"Note: {note}" for note in values.notes),
        *_variants_part(values.variants),
        *_texts_part(values.texts, spoken=hears(values.kind)),
        _details(metrics),
        *_picture(f"reliability-{task}.png", f"Reliability on {task}", figures),
    ]
    return [*blocks, " ".join(pictures)] if pictures else blocks


def _texts_part(texts: Sequence[WrittenExample], *, spoken: bool) -> list[str]:
    """What every model wrote for a few test examples, in a collapsed block. spoken: with the errors of transcripts marked."""
    if not texts:
        return []
    blocks = []
    for one in texts:
        rows = [["recording" if spoken else "source", one.source], ["reference", one.reference]]
        rows += [[name, text] for name, text in one.teachers.items()]
        rows.append(["ensemble", one.ensemble])
        rows += [[f"**{name}**", text] for name, text in one.students.items()]
        rows += [[f"{name}, supervised", text] for name, text in one.supervised.items()]
        cells = [[name, _cut(text)] for name, text in rows]
        if spoken:
            cells[2:] = [[name, _marked(text, one.reference)] for name, text in rows[2:]]
        blocks.append(markdown_table(["model", "text"], cells, words=2))
    shown = "\n\n".join(blocks)
    how = "; **wrong or added** words, ~~missing~~ ones" if spoken else ""
    return [
        f"<details><summary>Texts on which students and ensemble differ most{how}</summary>\n\n{shown}\n\n</details>"
    ]


def _variants_part(variants: Mapping[str, VariantsRecord]) -> list[str]:
    """What `augment` made of the training texts, and a few variants in a collapsed block."""
    if not variants:
        return []
    counts = [
        [name, f"{one.count:,}", f"{sum(one.dropped.values()):,}", f"{one.seconds:.1f}", f"{one.asked:,}"]
        for name, one in variants.items()
    ]
    shown = [
        [name, _cut(one.text), _cut(one.variant)] for name, made in variants.items() for one in made.examples
    ]
    examples = markdown_table(["method", "text", "variant"], shown, words=3)
    return [
        markdown_table(["variants", "in train", "dropped", "seconds", "words asked this time"], counts),
        "Variants of training texts, labelled by the teachers as texts of their own. Seconds: of the run that made them; "
        "words asked: of the masked language model, 0 where all its answers were stored.",
        f"<details><summary>Some variants</summary>\n\n{examples}\n\n</details>",
    ]


def _marked(text: str, reference: str) -> str:
    """A transcript for a cell of a table, with its errors marked."""
    from pipeline.tasks.word_errors import (
        compared,  # here: it imports torch, and a comparison of reports does not need it
    )

    marks = {"equal": "", "delete": "~~"}
    parts = [(marks.get(kind, "**"), _cut(words)) for kind, words in compared(text, reference)]
    return " ".join(f"{mark}{words}{mark}" for mark, words in parts)


def _cut(text: str) -> str:
    """A text for a cell of a table: on one line, without the marks of Markdown and HTML, at most `LONGEST_CELL` characters."""
    line = " ".join(text.split())
    return escape(line if len(line) <= LONGEST_CELL else f"{line[: LONGEST_CELL - 1]}…").replace("|", "\\|")


def _details(metrics: Metrics) -> str:
    """Every metric of every model, in a collapsed block."""
    models = {
        **metrics.teachers,
        "ensemble": metrics.ensemble,
        **{f"**{name}**": one for name, one in metrics.students.items()},
        **{f"{name}, supervised": one for name, one in metrics.supervised.items()},
    }
    names = list(dict.fromkeys(name for one in models.values() for name in one))
    rows = [
        [model, *(measured(name, one[name]) if name in one else NOTHING for name in names)]
        for model, one in models.items()
    ]
    table = markdown_table(["model", *names], rows)
    return f"<details><summary>All metrics</summary>\n\n{table}\n\n</details>"


def preflight_cells(findings: Sequence[PreflightFindings]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of preflight's table."""
    rows = [
        [
            one.teacher,
            f"{points(one.score)} {one.metric}",
            points(one.majority),
            NOTHING if one.chance is None else points(one.chance),
            NOTHING if one.entropy is None else f"{one.entropy:.2f}",
            NOTHING if one.ece is None else f"{one.ece:.3f}",
            ", ".join(f"{name} {points(share)}" for name, share in one.agreement.items()) or NOTHING,
            percent(one.truncated),
        ]
        for one in findings
    ]
    return ["teacher", "score", "constant", "random", "entropy", "ECE", "agrees with", "truncated"], rows


def _preflight_section(findings: Sequence[PreflightFindings]) -> list[str]:
    """The section on preflight: the teachers on validation examples before they label."""
    if not findings:
        return []
    notes = [f"Note: {one.teacher}: {text}." for one in findings for text in (*one.problems, *one.warnings)]
    examples = max(one.examples for one in findings)
    return [
        "## Teachers before labelling",
        markdown_table(*preflight_cells(findings)),
        f"On at most {examples} validation examples. Constant: the score of the best constant prediction; random: the "
        "mean score of the teacher's own predictions in random order, or, where an example has several items, of the "
        "same model under random heads; entropy: mean ÷ ln(classes), 1 says nothing.",
        *notes,
    ]


def _cost_section(report: Report) -> list[str]:
    labelled = [
        [name, f"{count:,}", f"{report.soft_targets.get(name, 0):,}"]
        for name, count in report.teacher_forwards.items()
    ]
    ratio = report.forwards_ratio
    share = NOTHING if ratio is None else f"{ratio:.2f}"
    return [
        "## Size and latency",
        markdown_table(["model", "parameters", "MB", "smaller"], _size_rows(report)),
        "Smaller: than all teachers together, in parameters.",
        markdown_table(
            ["task", "model", "ms an example", "median", "faster"], _latency_rows(report), words=2
        ),
        "One example alone, tokenizer included, on one thread of this machine's CPU. Students and "
        "teachers answer the same test examples in turn, in many rounds: of each example the fastest round, mean over "
        "the examples; median: of the rounds. Faster: than the task's teachers one after another.",
        *([f"Note: {text}"] if (text := busy_note(report)) else []),
        "## Teacher forwards",
        markdown_table(["teacher", "examples run this time", "soft targets needed"], labelled),
        f"Forwards ÷ (examples × teachers): {share}. 1 is each example labelled once by each of its teachers, however "
        "many epochs and students read it; 0 is everything read from the store.",
    ]


def busy_note(report: Report) -> str:
    """A sentence where the latencies are not reliable, else ""."""
    if report.latency.busy is None:
        return ""
    return f"the machine was busy while latencies were measured: {report.latency.busy}. Measure again on a quiet one."


def _size_rows(report: Report) -> list[list[str]]:
    rows = []
    for name, size in report.size.students.items():
        smaller = report.versus_teachers[name].times_smaller
        rows.append([f"**{name}**", *_size_cells(size), _ratio(smaller)])
    return rows + [[name, *_size_cells(size), NOTHING] for name, size in report.size.teachers.items()]


def _size_cells(size: Size) -> list[str]:
    return [f"{size.parameters:,}", f"{size.bytes / 1e6:.1f}"]


def _latency_rows(report: Report) -> list[list[str]]:
    """One row for each task and model; with several tasks, each student's mean ratio at the end."""
    rows = []
    for task, models in report.latency.tasks.items():
        for name, one in models.students.items():
            faster = report.versus_teachers[name].times_faster_by_task.get(task)
            rows.append([task, f"**{name}**", *_latency_cells(one), _ratio(faster)])
        rows += [[task, name, *_latency_cells(one), NOTHING] for name, one in models.teachers.items()]
    if len(report.latency.tasks) > 1:
        for name, ratios in report.versus_teachers.items():
            rows.append(["mean", f"**{name}**", NOTHING, NOTHING, _ratio(ratios.times_faster)])
    return rows


def _latency_cells(latency: Latency) -> list[str]:
    return [f"{latency.best_ms:.2f}", f"{latency.median_ms:.2f}"]


def _ratio(ratio: float | None) -> str:
    return NOTHING if ratio is None else f"{ratio:.1f}×"


def _training_section(report: Report) -> list[str]:
    """How each student was trained, a row for each stage."""
    rows = []
    for name, recipe in report.recipes.items():
        parts: Sequence[StageRecord | StudentRecord] = recipe.stages or (recipe,)
        for number, part in enumerate(parts, 1):
            label = f"{name}, stage {number}" if recipe.stages else name
            rates = [f"{part.learning_rate:g}", f"{part.head_learning_rate:g}"]
            gradual = isinstance(part, StageRecord) and part.unfreeze is not None
            loss = f"{_losses(part.loss)}{', unfrozen layer by layer' if gradual else ''}"
            rows.append([label, f"{part.epochs}", f"{recipe.batch_size}", *rates, loss])
    if not rows:
        return []
    head = ["student", "epochs", "batch", "learning rate", "of heads", "loss"]
    focused = [name for name, recipe in report.recipes.items() if recipe.task_focus is not None]
    focus = [f"{', '.join(focused)}: tasks further behind their ensemble got more steps."] if focused else []
    return ["## Training", markdown_table(head, rows), *focus]


def _losses(losses: Mapping[str, LossRecord]) -> str:
    """The losses of all tasks, once where they are the same."""
    by_task = {task: loss_in_words(loss) for task, loss in losses.items()}
    if len(set(by_task.values())) == 1:
        return next(iter(by_task.values()))
    return "; ".join(f"{task}: {loss}" for task, loss in by_task.items())


def loss_in_words(loss: LossRecord | TaskLoss) -> str:
    """One task's loss: `0.3 hard + 0.7 soft at temperature 2`."""
    weights = {"hard": loss.hard, "soft": loss.soft, "hidden": loss.hidden}
    terms = " + ".join(f"{weight:.2g} {term}" for term, weight in weights.items() if weight)
    words = f"{terms} at temperature {loss.temperature:g}" if loss.soft or loss.on_policy else terms
    words += f" with β {loss.beta:g}" if (loss.soft or loss.on_policy) and loss.beta else ""
    words += f", {percent(loss.text)} of the texts the teachers' own" if loss.text else ""
    words += (
        f", {percent(loss.on_policy)} of the texts its own, of the round before" if loss.on_policy else ""
    )
    return f"{words}, labels smoothed by {loss.label_smoothing:g}" if loss.label_smoothing else words


def _run_section(report: Report) -> list[str]:
    timings = [[stage, f"{seconds:.1f}"] for stage, seconds in report.timings_s.items()]
    timings.append(["total", f"{sum(report.timings_s.values()):.1f}"])
    if report.first_step_s is not None:
        timings.append(["launch to first step", f"{report.first_step_s:.1f}"])
    launches = f" Stage times add up over {report.launches} launches." if report.launches > 1 else ""
    versions = [[package, version] for package, version in report.versions.items()]
    blocks = [
        "## Run",
        markdown_table(["stage", "seconds"], timings),
        f"Seed {report.seed}.{launches}",
        markdown_table(["package", "version"], versions),
    ]
    return blocks + [f"Note: {note}" for note in report.notes]


def _cells(row: StudentScores) -> list[str]:
    """The cells score, supervised, Δ, retention, gap recovered."""
    if row.supervised is None or row.delta_error is None:
        delta = supervised = NOTHING
    else:
        supervised = points(row.supervised)
        delta = f"{signed(row.score - row.supervised)} ± {points(row.delta_error)}"
    return [points(row.score), supervised, delta, percent(row.retention), recovered(row.gap_recovered)]


def _picture(name: str, caption: str, figures: Sequence[str]) -> list[str]:
    return [f"![{caption}](figures/{name})"] if name in figures else []
