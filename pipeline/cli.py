"""argv → config → one call; exit codes."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.console import Console

from pipeline.cluster import lock_private_ray
from pipeline.config.fields import Split
from pipeline.config.load import load_config
from pipeline.config.redact import redact_text
from pipeline.config.schema import RunConfig
from pipeline.config.view import to_yaml
from pipeline.errors import ConfigError, Errors, TutelageError
from pipeline.urls import is_url, join, without_secrets

if TYPE_CHECKING:
    from pipeline.prepare import Inputs

app = typer.Typer(
    help="Distil many task-specific teacher transformers into one small multi-task student.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run's config.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Keys to set otherwise.", show_default=False),
]
PIPED = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140
out = Console(highlight=False, soft_wrap=True, width=PIPED)


class _WithoutSecrets(logging.Formatter):
    """Formats log messages without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redact_text(super().format(record))


@app.callback()
def _main(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger().setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_WithoutSecrets("%(levelname)s: %(message)s"))


@app.command()
def check(
    run: RunFile,
    overrides: Overrides = None,
    teachers: Annotated[
        bool,
        typer.Option("--teachers", help="Ask the teachers that are ready a few hundred validation examples."),
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Print the whole config, every default filled in, as well.")
    ] = False,
) -> None:
    """Check a config, its data and models, without Ray; show every error at once, or a summary."""
    from pipeline.check import check_local_files, summary

    errors = Errors(lambda number, error: _show_error(error, number))
    with errors:
        config = load_config(run, overrides or [], errors)
        check_local_files(config, errors)  # before torch is imported
        from pipeline.prepare import prepare

        with errors:
            _check_space(config)
        inputs = prepare(config, errors)
        from pipeline.round_before import folders_before

        folders_before(config)
        if config.tune is not None:
            from tune.space import check_derived

            check_derived(config, inputs.facts)
        mark = ""
        if full:
            out.print(to_yaml(config), markup=False)
            mark = "# "  # so that all of it is YAML
        for line in summary(config, inputs):
            out.print(f"{mark}{line}", markup=False)
        if teachers:
            _check_teachers(config, inputs)
        out.print(f"{mark}ok")
    if errors.kept:
        count = len(errors.kept)
        print(f"{count} error{'s' if count > 1 else ''} in {run}", file=sys.stderr)
        raise typer.Exit(2)


def _check_teachers(config: RunConfig, inputs: Inputs) -> None:
    """Runs the preflight of the teachers that need no fine-tuning, in this process."""
    from pipeline.display.wide_table import Field, WideTable
    from pipeline.prepare import teacher_curves, teacher_specs
    from pipeline.report.page import preflight_cells
    from pipeline.report.results import preflight_records
    from teachers.checks import refuse
    from teachers.preflight import preflight

    waiting = inputs.to_fine_tune()
    specs = teacher_specs(config, inputs, [name for name in config.teachers if name not in waiting])
    for name in waiting:
        out.print(f"# teacher {name} can be asked once it is fine-tuned", markup=False)
    if not specs:
        return
    validation = {name: data.splits["validation"] for name, data in inputs.data.items()}
    findings = preflight(specs, validation, config.preflight_dir, on_ray=False, curves=teacher_curves(inputs))
    head, rows = preflight_cells(preflight_records(findings))
    words = ("teacher", "agrees with")
    out.print(
        WideTable(
            [
                Field(name, [row[place] for row in rows], words=name in words, key=name == "teacher")
                for place, name in enumerate(head)
            ]
        )
    )
    for warning in refuse(findings, lambda name: config.teachers[name].preflight == "warn"):
        out.print(f"# {warning}", markup=False)


@app.command()
def train(run: RunFile, overrides: Overrides = None) -> None:
    """Teachers, soft targets, students, report; goes on where a run of the same config stopped."""
    config = load_config(run, overrides or [])
    lock_private_ray(config)  # before Ray is imported
    from pipeline import group, rounds
    from pipeline import run as runs
    from pipeline.compare.rows import load
    from pipeline.compare.show import students
    from pipeline.display.display import Display
    from pipeline.report import group as group_report
    from pipeline.report import page as report_page
    from pipeline.report import rounds as rounds_report
    from pipeline.run_folder import GROUP_PAGE, REPORT_PAGE, ROUNDS_PAGE

    advice: list[str] = []
    with Display(out) as display:
        if config.in_rounds:
            verdict = "\n".join(rounds_report.verdict(rounds.distil_rounds(config, display)))
        elif config.seeds:
            made = group.distil_seeds(config, display)
            verdict, advice = "\n".join(group_report.verdict(made)), group_report.advice_lines(made)
        else:
            report = runs.distil(config, display)
            verdict, advice = report_page.verdict(report), [*map(report_page.advice_line, report.advice)]
    out.print(students(load([config.run_dir])))
    out.print(verdict.replace("**", ""), markup=False)
    for line in advice:
        out.print(f"\nadvice: {line.replace('`', '')}", markup=False)
    page, runs_of = (GROUP_PAGE, "-seed*") if config.seeds else (REPORT_PAGE, "")
    if config.in_rounds:
        page, runs_of = ROUNDS_PAGE, f"-round*{runs_of}"
    out.print(f"\nreport    {config.run_dir / page}", markup=False)
    out.print(f"students  {config.run_dir}{runs_of}/students", markup=False)
    if config.runs_url is not None:
        out.print(f"both in   {without_secrets(join(config.runs_url, config.name))}{runs_of}", markup=False)
    if config.tracking.enabled:
        out.print(f"MLflow    {_ui_command(run, overrides)}", markup=False)


@app.command()
def tune(
    run: RunFile,
    overrides: Overrides = None,
    register: Annotated[
        str | None,
        typer.Option(
            "--register",
            metavar="NAME",
            help="Register the winner in MLflow's model registry.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Search the values that `tune.space` names; goes on where a study of the same config stopped."""
    config = load_config(run, overrides or [])
    _check_space(config, required=True)
    lock_private_ray(config)  # before Ray is imported
    from pipeline.display.display import Display
    from tune.report import verdict
    from tune.run import study_config
    from tune.run import tune as search

    with Display(out) as display:
        study = search(config, display, register)
    folder = study_config(config).run_dir
    for paragraph in verdict(study):
        out.print(paragraph.replace("**", "").replace("`", ""), markup=False)
    out.print(f"\nstudy   {folder / 'study.md'}", markup=False)
    out.print(f"winner  {folder / 'best.yaml'}", markup=False)
    if config.tracking.enabled:
        out.print(f"MLflow  {_ui_command(run, overrides)}", markup=False)


def _ui_command(run: Path, overrides: list[str] | None) -> str:
    """How a person opens MLflow on what a command with these arguments has made, without secrets."""
    return redact_text(shlex.join(["tutelage", "ui", str(run), *(overrides or [])]))


def _check_space(config: RunConfig, *, required: bool = False) -> None:
    """Raises `ConfigError` where the config's `tune` is not valid."""
    if config.tune is not None or required:
        from tune.space import checked

        checked(config)


@app.command()
def label(run: RunFile, overrides: Overrides = None) -> None:
    """Make the teachers and fill the store with their soft targets; train no student."""
    config = load_config(run, overrides or [])
    lock_private_ray(config)  # before Ray is imported
    from pipeline import run as runs
    from pipeline.display.display import Display

    with Display(out) as display:
        runs.label(config, display)


@app.command()
def teachers(run: RunFile, overrides: Overrides = None) -> None:
    """Say what each teacher is worth and where teachers disagree, from stored soft targets; runs no teacher."""
    config = load_config(run, overrides or [])
    from pipeline.prepare import prepare
    from pipeline.report.evidence import checked_keys, task_teachers
    from pipeline.report.teacher_tables import teacher_tables
    from teachers.store import Store

    inputs = prepare(config)
    keys, store = checked_keys(config, inputs), Store(config.store_path)
    for data in inputs.data.values():
        for part in teacher_tables(task_teachers(config, data, keys, store), len(data.splits["validation"])):
            out.print(part)
            out.print()


@app.command()
def store(
    run: RunFile,
    overrides: Overrides = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every shard; set damaged ones aside, to be labelled again.")
    ] = False,
    compact: Annotated[
        bool, typer.Option("--compact", help="Merge small shards into few large ones.")
    ] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove the targets that no run needs any more; asks first.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """List the stored soft targets and the runs that read them; verify, compact, remove them."""
    config = load_config(run, overrides or [])
    from teachers.store import Store
    from teachers.upkeep import holdings, is_needless, table, unread

    kept = Store(config.store_path)
    held = holdings(kept)
    if verify:
        damaged = sum(kept.verify(one.teacher) for one in held)
        shards = sum(one.shards for one in held)
        out.print(f"{shards:,} shards read, {damaged} damaged")
    if compact:
        with unread(held, sure=yes):
            for one in held:
                kept.compact(one.teacher)
        after = holdings(kept)
        out.print(f"{sum(one.shards for one in held):,} shards are {sum(one.shards for one in after):,} now")
    held = holdings(kept)
    out.print(table(held) if held else "nothing is stored")
    if not remove:
        return
    needless = [one for one in held if is_needless(one)]
    if not needless:
        out.print("every target is needed by a run, or may be")
        return
    names = ", ".join(one.teacher for one in needless)
    size = sum(one.size for one in needless) / 1e6
    question = f"Remove {size:,.1f} MB of targets, {names}, whose runs are gone?"
    if not yes and not typer.confirm(question):
        return
    for one in needless:
        kept.remove(one.teacher)
    out.print(f"removed {size:,.1f} MB")


@app.command()
def evaluate(
    student: Annotated[
        Path, typer.Argument(help="A student's folder, e.g. runs/NAME/students/STUDENT.", show_default=False)
    ],
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Config whose data to score on; by default that of the student's run."),
    ] = None,
    split: Annotated[Split, typer.Option(help="Which split.")] = "test",
) -> None:
    """Score a saved student on every task it has."""
    from pipeline.saved import score_student, score_table

    config = load_config(run or _config_of(student))
    out.print(score_table(student.name, split, score_student(student, config, split)))


@app.command()
def export(
    student: Annotated[
        Path, typer.Argument(help="A student's folder, e.g. runs/NAME/students/STUDENT.", show_default=False)
    ],
    task: Annotated[str, typer.Option(help="Which of its tasks.", show_default=False)],
    to: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write model.onnx as well, checked against PyTorch.")
    ] = False,
) -> None:
    """Copy one task of a student out as a plain Hugging Face folder."""
    from pipeline.saved import export_task

    difference = export_task(student, load_config(_config_of(student)), task, to, onnx)
    checked = "" if difference is None else f", model.onnx agrees within {difference:.1g}"
    out.print(f"{to}: {student.name} for {task}{checked}", markup=False)


@app.command()
def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Folders of runs, groups or searches, or names of experiments; by default all runs.",
            show_default=False,
        ),
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Best first by this column; -COLUMN: worst first.")
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="EXPR",
            help="Only rows with e.g. 'student=half', 'retention>=0.95' or 'run~quick'; may be repeated.",
        ),
    ] = None,
    to: Annotated[Literal["table", "md", "csv", "html"], typer.Option(help="How to print.")] = "table",
    runs_dir: Annotated[str, typer.Option(help="Where runs are: a folder or a URL.")] = "runs",
) -> None:
    """Print students side by side, with their teachers."""
    from pipeline.compare import show as compare_show
    from pipeline.compare.columns import select
    from pipeline.compare.rows import load

    if is_url(runs_dir):
        from pipeline.shared_runs import pull_reports

        folder = pull_reports(runs_dir)
    else:
        folder = Path(runs_dir)
    rows = select(load(runs or [], folder), filters or [], sort)
    if to == "table":
        for part in compare_show.tables(rows):
            out.print(part, "")
    else:
        write = {"md": compare_show.to_markdown, "csv": compare_show.to_csv, "html": compare_show.to_html}
        sys.stdout.write(write[to](rows))


@app.command()
def ui(run: RunFile, overrides: Overrides = None) -> None:
    """Open MLflow on the run's store, on this machine only, and print the addresses of its views."""
    import webbrowser

    from pipeline.tracking.database import database_lock, ensure_database
    from pipeline.tracking.uri import artifact_root, opens_browser, pages, serve, server_page, ui_command

    config = load_config(run, overrides or [])
    artifacts, base = artifact_root(config), server_page(config)
    command = [] if artifacts is None and base else ui_command(config)
    if artifacts is not None:
        with database_lock(artifacts):  # a kill of the server while it makes its tables would spoil the file
            ensure_database(config.tracking_uri)
        base = server_page(config, int(command[-1]))
    assert base is not None, "`ui_command` refuses a server without a page"
    addresses = pages(config, base)
    for title, address in addresses.items():
        out.print(f"{title}\n  {address}", markup=False, soft_wrap=True)

    def show() -> None:
        if opens_browser(os.environ, sys.platform, terminal=sys.stdout.isatty()):
            webbrowser.open(next(iter(addresses.values())))

    if not command:  # a server shows its runs itself
        show()
        return
    if os.environ.get("SSH_CONNECTION"):
        port = command[-1]
        out.print(
            f"over ssh, in a terminal at home: ssh -L {port}:127.0.0.1:{port} THIS-MACHINE", markup=False
        )
    raise typer.Exit(serve(command, show))


def _config_of(student: Path) -> Path:
    """Path of the config of the run to which a student's folder belongs."""
    from pipeline.run_folder import CONFIG
    from pipeline.saved import student_remedy

    config = student.absolute().parent.parent / CONFIG
    if not config.is_file():
        raise ConfigError(f"{student} is no student of a run: there is no {config}", student_remedy(student))
    return config


def main() -> NoReturn:
    """The console script: runs a command; an error becomes two lines on stderr and its exit code."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]  # it may stand anywhere
    signal.signal(signal.SIGTERM, _terminate)  # until a run takes it; SIGINT is Python's KeyboardInterrupt
    try:
        code = app(arguments, standalone_mode=False)
        if code == 130:  # typer catches Ctrl-C and prints nothing
            raise KeyboardInterrupt
        sys.exit(code)
    except TutelageError as error:
        _fail(error.cause, error.remedy, error.exit_code)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", "Run the same command again.", 130)
    except _Terminated:
        _fail("stopped by SIGTERM", "Run the same command again.", 75)
    except OSError as error:
        _fail(*_of_files(error))
    except Exception as error:
        if hasattr(error, "show"):  # click's usage errors explain themselves
            error.show()
            sys.exit(getattr(error, "exit_code", 2))
        _fail(*_unexpected(error))


def _unexpected(error: Exception) -> tuple[str, str, int]:
    remedy = "Run again with --debug for the traceback, and report it."
    return f"unexpected {type(error).__name__}: {error}", remedy, 1


def _of_files(error: OSError) -> tuple[str, str, int]:
    """Cause, remedy and exit code where the disk is full, or a file or folder is not what it must be."""
    where = "" if error.filename is None else f"{error.filename}: "
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}the disk is full", "Free some space and run the same command again.", 4
    if where and isinstance(
        error, PermissionError | NotADirectoryError | IsADirectoryError | FileExistsError
    ):
        remedy = "Give another folder (runs_dir, store.path, --to), or move what is in the way."
        return f"{where}{error.strerror}", remedy, 2
    return _unexpected(error)


class _Terminated(BaseException):
    """SIGTERM. A BaseException like KeyboardInterrupt, so that `except Exception` in a library does not catch it."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated


def _fail(cause: str, remedy: str, code: int) -> NoReturn:
    """Ends the process; called while an exception is handled."""
    _show_error(TutelageError(cause, remedy))
    sys.exit(code)


def _show_error(error: TutelageError, number: int | None = None) -> None:
    """Two lines on stderr; called while an exception is handled."""
    if "--debug" in sys.argv[1:]:
        print(redact_text(traceback.format_exc()), file=sys.stderr)
    head = "error" if number is None else f"error {number}"
    lines = f"{head}: {' '.join(error.cause.split())}\n  {' '.join(error.remedy.split())}"
    print(redact_text(lines), file=sys.stderr)
