"""The command line: exit codes, two lines on stderr, and nothing started before everything is known.

Rows of faults are those that can be decided before Ray starts; `check` decides all but two of them.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock

from pipeline import cli
from pipeline.batch import Ragged
from pipeline.config.load import load_config, parse_config
from pipeline.config.redact import redact
from pipeline.config.view import to_yaml
from pipeline.errors import DataError, TutelageError
from pipeline.models import fingerprint
from pipeline.prepare import prepare, teacher_specs
from pipeline.soft import Dense, SoftTargets
from pipeline.tracking.spool import Ledger
from pipeline.training.result import write_result
from teachers.store import Store
from tests.conftest import TinyModel, TinyRun, write_csv

ROOT = Path(__file__).resolve().parents[3]
Outcome = tuple[int, str, str]
Tutelage = Callable[..., Outcome]


@pytest.fixture
def tutelage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tutelage:
    """Runs a command in this process: arguments → exit code, stdout, stderr."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["tutelage", *map(str, arguments)])
        monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's: the command makes its own
        capsys.readouterr()
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as caught:
                cli.main()
        finally:
            signal.signal(signal.SIGTERM, before)
        printed = capsys.readouterr()
        code = caught.value.code
        return code if isinstance(code, int) else 0, printed.out, printed.err

    return run


def written(folder: Path, run: object) -> Path:
    file = folder / "run.yaml"
    file.write_text(run if isinstance(run, str) else yaml.safe_dump(run, sort_keys=False), encoding="utf-8")
    return file


def changed(run: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    run = copy.deepcopy(run)
    *sections, leaf = path.split(".")
    place = run
    for section in sections:
        place = place.setdefault(section, {})
    place[leaf] = value
    return run


def numbered(error: str) -> list[tuple[str, str]]:
    """Causes and remedies as `check` numbers them, before their count; and nothing else."""
    assert "Traceback" not in error
    *lines, count = error.splitlines()
    causes, remedies = lines[::2], lines[1::2]
    assert [cause.split(": ", 1)[0] for cause in causes] == [f"error {i + 1}" for i in range(len(causes))]
    assert all(remedy.startswith("  ") for remedy in remedies)
    assert count.startswith(f"{len(causes)} error")
    return [(c.split(": ", 1)[1], r.strip()) for c, r in zip(causes, remedies, strict=True)]


def two_lines(error: str) -> tuple[str, str]:
    """Cause and remedy, and nothing else."""
    assert "Traceback" not in error
    cause, remedy = error.splitlines()
    assert cause.startswith("error: ")
    assert remedy.startswith("  ")
    return cause.removeprefix("error: "), remedy.strip()


# ---------------------------------------------------------------- help and usage


COMMANDS = ("check", "train", "label", "teachers", "store", "evaluate", "export", "compare", "ui")


def test_help_lists_the_commands(tutelage: Tutelage) -> None:
    for flag in ("--help", "-h"):
        code, out, err = tutelage(flag)
        assert (code, err) == (0, "")
        assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(tutelage: Tutelage, command: str) -> None:
    code, out, err = tutelage(command, "--help")
    assert (code, err) == (0, "")
    assert f"tutelage {command}" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chek"], "Did you mean 'check'?"),
        (["check"], "Missing argument 'RUN.yaml'"),
        (["check", "run.yaml", "--quick"], "No such option: --quick"),
        (["compare", "--to", "pdf"], "--to"),
        (["export", "runs/x/students/y"], "Missing option"),
    ],
)
def test_wrong_usage_is_exit_code_2(tutelage: Tutelage, arguments: list[str], said: str) -> None:
    code, _, err = tutelage(*arguments)
    assert code == 2
    assert said in err
    assert "Traceback" not in err


def test_no_command_shows_the_help(tutelage: Tutelage) -> None:
    code, out, err = tutelage()
    assert code == 2
    assert "check" in out + err


# ---------------------------------------------------------------- errors become exit codes


@pytest.mark.parametrize("error_class", TutelageError.__subclasses__())
@pytest.mark.parametrize(
    "arguments", [("check", "run.yaml"), ("train", "run.yaml"), ("evaluate", "student", "--run", "run.yaml")]
)
def test_our_errors_are_two_lines_and_their_exit_code(
    tutelage: Tutelage,
    monkeypatch: pytest.MonkeyPatch,
    error_class: type[TutelageError],
    arguments: tuple[str, ...],
) -> None:
    def fail(*_: object) -> None:
        raise error_class("the cause,\nover two lines", "the  remedy")

    monkeypatch.setattr(cli, "load_config", fail)
    code, out, err = tutelage(*arguments)
    assert (code, out) == (error_class.exit_code, "")
    shown = numbered(err)[0] if arguments[0] == "check" and code == 2 else two_lines(err)
    assert shown == ("the cause, over two lines", "the remedy")


def test_other_errors_are_two_lines_and_exit_code_1(
    tutelage: Tutelage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("boom\nand more")

    monkeypatch.setattr(cli, "load_config", fail)
    code, _, err = tutelage("check", "run.yaml")
    assert code == 1
    assert two_lines(err)[0] == "unexpected RuntimeError: boom and more"
    assert "--debug" in two_lines(err)[1]


def test_a_folder_that_is_none_is_two_lines(
    tutelage: Tutelage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where runs_dir, the store or a run folder is a file, or its lock a folder."""
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.touch()
    folder.mkdir()
    for fail, where in (
        (lambda *_: (file / "x").mkdir(), file / "x"),
        (lambda *_: file.mkdir(), file),
        (lambda *_: folder.open("w"), folder),
    ):
        monkeypatch.setattr(cli, "load_config", fail)
        code, _, err = tutelage("train", "run.yaml")
        assert code == 2
        assert two_lines(err)[0].startswith(f"{where}: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_two_lines_and_exit_code_4(
    tutelage: Tutelage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        with open("/dev/full", "w") as stream:  # noqa: PTH123
            stream.write("x")

    monkeypatch.setattr(cli, "load_config", fail)
    code, _, err = tutelage("train", "run.yaml")
    assert code == 4
    assert two_lines(err)[0] == "the disk is full"


def test_sigterm_before_a_run_has_begun_is_exit_code_75(
    tutelage: Tutelage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminate(*_: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:  # as libraries do that take every error for their own
            pytest.fail("swallowed")

    monkeypatch.setattr(cli, "load_config", terminate)
    code, out, err = tutelage("train", "run.yaml")
    assert (code, out) == (75, "")
    assert two_lines(err) == ("stopped by SIGTERM", "Run the same command again.")


@pytest.mark.parametrize("error_class", [DataError, RuntimeError])
def test_no_secret_is_printed_whatever_raises_or_logs_it(
    tutelage: Tutelage, monkeypatch: pytest.MonkeyPatch, error_class: Callable[..., Exception]
) -> None:
    def fail(*_: object) -> None:
        logging.getLogger("elsewhere").warning("GET %s", "https://me:hunter2@host/?token=hunter2")
        raise error_class("no data at https://me:hunter2@host/x.csv", "see me:hunter2@host?api_key=hunter2")

    monkeypatch.setattr(cli, "load_config", fail)
    _, out, err = tutelage("check", "run.yaml", "--debug")
    assert "https://***@host/x.csv" in err
    assert "https://***@host/?token=***" in err
    assert "hunter2@" not in out + err
    assert "=hunter2" not in out + err.replace('"', "")


def test_ctrl_c_is_exit_code_130(tutelage: Tutelage, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_config", interrupt)
    code, _, err = tutelage("check", "run.yaml")
    assert code == 130
    assert two_lines(err)[0] == "interrupted"


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_may_stand_anywhere_and_adds_the_traceback(
    tutelage: Tutelage, tmp_path: Path, place: int
) -> None:
    arguments = ["check", str(tmp_path / "absent.yaml")]
    code, _, err = tutelage(*arguments[:place], "--debug", *arguments[place:])
    assert code == 2
    assert "Traceback" in err
    assert numbered("\n".join(err.splitlines()[-3:]))[0][0].startswith("cannot read")


# ---------------------------------------------------------------- check


def test_check_prints_a_summary(tutelage: Tutelage, tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run(aggregation={"teacher_weights": {"mood-bert": 3.0}})
    bert, distilbert = run["teachers"]["mood-bert"]["model"], run["teachers"]["mood-distilbert"]["model"]
    code, out, err = tutelage("check", written(tmp_path, run), "loss.hard=1.4", "loss.soft=0.7")
    assert (code, err) == (0, "")
    wide = max(len(bert), len(distilbert))
    derived = ("fine-tune  ", "train  ", "loss  ")  # lines on what is derived: see test_recipe.py
    assert [line for line in out.splitlines() if not line.startswith(derived)] == [
        "run tiny: 2 tasks, 3 teachers, 2 students",
        "task  mood  text-classification  48 train, 16 validation, 16 test  2 labels: bad, good",
        "task  tone  text-classification  48 train, 16 validation, 16 test  3 labels: bad, good, plain",
        f"teacher  mood-bert        of mood  {bert:{wide}}  to be fine-tuned",
        f"teacher  mood-distilbert  of mood  {distilbert:{wide}}  to be fine-tuned",
        f"teacher  tone-bert        of tone  {bert:{wide}}  to be fine-tuned",
        f"student  cut   {'from mood-bert':{len(run['students']['bare']['model']) + 5}}  1 layer",
        f"student  bare  from {run['students']['bare']['model']}",
        "note: mood: validation has 16 examples, so that a score there has a standard error of up to 12.5 points: too few "
        "to choose settings by",
        "note: tone: validation has 16 examples, so that a score there has a standard error of up to 12.5 points: too few "
        "to choose settings by",
        "note: teacher weights of mood normalised to sum to 1: mood-bert 0.75, mood-distilbert 0.25",
        "note: loss weights of cut normalised to sum to 1: hard 0.667, soft 0.333",
        "note: loss weights of bare normalised to sum to 1: hard 0.667, soft 0.333",
        "ok",
    ]
    assert not (tmp_path / "runs").exists()


def test_check_in_full_is_the_resolved_config(tutelage: Tutelage, tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run()
    code, out, err = tutelage("check", "--full", written(tmp_path, run), "train.epochs=4")
    assert (code, err) == (0, "")
    assert load_config(written(tmp_path, out)) == parse_config(changed(run, "train.epochs", 4))
    assert "# run tiny: 2 tasks, 3 teachers, 2 students" in out.splitlines()
    assert out.splitlines()[-1] == "# ok"


def test_check_shows_every_error_of_the_config(tutelage: Tutelage, tiny_run: TinyRun, tmp_path: Path) -> None:
    run = changed(tiny_run(), "loss.temprature", 2)
    run = changed(run, "train.epochs", 0)
    run = changed(run, "students.cut.layers", [3, 1])
    code, out, err = tutelage("check", written(tmp_path, run))
    assert (code, out) == (2, "")
    assert {cause.split(":")[0] for cause, _ in numbered(err)} == {
        "loss.temprature",
        "train.epochs",
        "students.cut",
    }


def test_check_shows_every_name_that_is_wrong(tutelage: Tutelage, tiny_run: TinyRun, tmp_path: Path) -> None:
    run = changed(tiny_run(), "teachers.tone-bert.task", "tonne")
    run = changed(run, "students.cut.init_from", "mood-bart")
    run = changed(run, "students.bare.train", {"workers": 2, "epoch": 1, "learning_rte": 1})
    run = changed(run, "students.bare.loss", {"temprature": 1})
    run = changed(run, "seeds", [1, 1])
    code, _, err = tutelage("check", written(tmp_path, run))
    assert code == 2
    assert [cause.split(":")[0] for cause, _ in numbered(err)] == [
        "teachers.tone-bert.task",
        "students.cut.init_from",
        "tasks.tone",
        "students.bare.train.epoch",
        "students.bare.train.learning_rte",
        "students.bare.loss.temprature",
        "students.bare.train.workers",
        "seeds",
    ]


def test_check_shows_every_error_of_data_and_models(
    tutelage: Tutelage, tiny_run: TinyRun, tiny_model: TinyModel, tmp_path: Path
) -> None:
    run = tiny_run()
    mood, tone = (run["tasks"][task]["data"]["data_files"] for task in ("mood", "tone"))
    Path(mood["train"]).write_text("text,label\ngood,good\nbad,bad,worse\n")
    write_csv(Path(tone["train"]), [{"text": "good", "label": "good"}, {"text": "bad", "label": " good"}])
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model("bert"), broken)
    (broken / "config.json").write_text('{"model_type": "bert",}')
    run = changed(run, "teachers.tone-bert.model", str(broken))
    run = changed(run, "students.bare.model", "/no/such/folder")
    code, out, err = tutelage("check", written(tmp_path, run))
    assert (code, out) == (2, "")
    assert [cause for cause, _ in numbered(err)] == [
        f"{mood['train']}:3: 3 fields, the header has 2: text, label",
        f"teachers.tone-bert: {broken / 'config.json'}:1:23: Expecting property name enclosed in double quotes",
        *[cause for cause, _ in numbered(err) if cause.startswith("students.bare: no model")],
        "tasks.tone: labels of train that differ by case or blanks alone: 'good' 1 times, ' good' 1 times; see row 1",
    ]
    assert len(numbered(err)) == 4


def test_teachers_need_stored_soft_targets(tutelage: Tutelage, tiny_run: TinyRun, tmp_path: Path) -> None:
    code, out, err = tutelage("teachers", written(tmp_path, tiny_run()))
    assert (code, out) == (2, "")
    cause, remedy = two_lines(err)
    assert cause == "teachers.mood-bert is not fine-tuned yet"
    assert "tutelage train RUN.yaml" in remedy


def test_teachers_prints_worth_and_disagreement_from_the_store(
    tutelage: Tutelage, tiny_run: TinyRun, tiny_model: TinyModel, tmp_path: Path
) -> None:
    run = tiny_run()
    labels = {"mood": ("bad", "good"), "tone": ("bad", "good", "plain")}
    for number, teacher in enumerate(run["teachers"].values()):
        teacher.pop("fine_tune")
        teacher["model"] = str(tiny_model("bert", labels[teacher["task"]], seed=number))
    file = written(tmp_path, run)
    code, _, err = tutelage("teachers", file)
    assert code == 2
    assert re.search(r"teachers.mood-bert: the store .* lacks (\d+) of \1 validation soft targets", err)
    config = load_config(file)
    inputs = prepare(config)
    for spec in teacher_specs(config, inputs):
        validation = inputs.data[spec.task.name].splits["validation"]
        values = np.random.default_rng(0).normal(size=(len(validation), len(spec.task.head.columns)))
        soft = Dense(Ragged.single(values.astype(np.float16)), spec.task.head.columns)
        Store(config.store_path).append(spec.key, SoftTargets(validation.keys, soft))
    code, out, err = tutelage("teachers", file)
    assert (code, err) == (0, "")
    assert "mood: teachers on" in out
    assert "mood-bert: no measurable difference on" in out
    assert "tone-bert is the only teacher" in out
    assert "100.0%" in out  # both teachers of mood have the same soft targets


def test_train_stops_at_the_first_error(tutelage: Tutelage, tiny_run: TinyRun, tmp_path: Path) -> None:
    run = changed(changed(tiny_run(), "loss.temprature", 2), "train.epochs", 0)
    code, _, err = tutelage("train", written(tmp_path, run))
    assert code == 2
    two_lines(err)


def test_errors_of_the_config_and_of_files_come_before_torch(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run()
    file = Path(run["tasks"]["mood"]["data"]["data_files"]["train"])
    file.write_bytes(b"text,label\ncaf\xe9,bad\n")
    script = (
        "import sys\nfrom pipeline import check, cli, errors\n"
        "from pipeline.config.load import load_config\nkept = errors.Errors(lambda number, error: None)\n"
        "check.check_local_files(load_config(sys.argv[1], (), kept), kept)\n"
        "print(kept.kept[0].cause, [name for name in ('torch', 'datasets', 'transformers') if name in sys.modules])"
    )
    command = [sys.executable, "-c", script, str(written(tmp_path, run))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{file}:2: not UTF-8 []"


def test_check_brings_in_neither_ray_nor_mlflow(tiny_run: TinyRun, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pipeline import cli\n"
        "try:\n    cli.main()\n"
        "finally:\n    print([name for name in ('ray', 'mlflow', 'tune') if name in sys.modules])"
    )
    command = [sys.executable, "-c", script, "check", str(written(tmp_path, tiny_run()))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-2:] == ["ok", "[]"]


def test_the_store_is_listed_compacted_and_rid_of_what_no_run_needs(
    tutelage: Tutelage, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = written(tmp_path, tiny_run()), tmp_path / "runs" / "old"
    assert tutelage("store", file)[:2] == (0, "nothing is stored\n")
    store = Store(load_config(str(file)).store_path)
    for start in (0, 5):
        keys = np.arange(start, start + 5, dtype=np.uint64)
        store.append("0a", SoftTargets(keys, Dense(Ragged.single(np.ones((5, 2), np.float32)), ("a", "b"))))
    store.describe("0a", {"teacher": "large", "task": "mood"})
    code, out, _ = tutelage("store", file, "--remove", "--yes")
    assert (code, "every target is needed" in out) == (0, True), "it is not known for which runs they are"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    store.use("0a", str(folder), platform.node())
    code, out, _ = tutelage("store", file, "--verify", "--compact")
    assert code == 0
    assert "2 shards read, 0 damaged" in out
    assert "2 shards are 1 now" in out
    assert re.search(r"^ *0a +mood +large +logits, 2 columns +10 +1 +0\.0 +old *$", out, re.MULTILINE)
    lock = FileLock(folder / ".lock")
    with lock:
        code, _, err = tutelage("store", file, "--compact")
    assert (code, "another launch is using" in err) == (2, True)
    shutil.rmtree(folder)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    code, _, err = tutelage("store", file, "--remove")
    assert code == 130, "nobody answers"
    assert store.teachers() == ["0a"]
    assert tutelage("store", file, "--remove", "--yes")[0] == 0
    assert store.teachers() == []


# ---------------------------------------------------------------- faults, by their rows


def test_secrets_are_not_printed(tutelage: Tutelage, tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run(tracking={"uri": "https://me:hunter2@mlflow", "enabled": False})
    code, out, err = tutelage("check", "--full", written(tmp_path, run))
    assert code == 0
    assert "https://***@mlflow" in out
    assert "hunter2" not in out + err


def refused(tutelage: Tutelage, run: object, folder: Path, *overrides: str) -> tuple[str, str]:
    code, _, err = tutelage("check", written(folder, run), *overrides)
    assert code == 2
    return numbered(err)[0]


def test_20_label_space_mismatch(
    tutelage: Tutelage, tiny_run: TinyRun, tiny_model: TinyModel, tmp_path: Path
) -> None:
    teacher = {"task": "mood", "model": str(tiny_model("bert", ("good", "bad", "ugly")))}
    cause, remedy = refused(tutelage, changed(tiny_run(), "teachers.mood-bert", teacher), tmp_path)
    assert cause == (
        "teachers.mood-bert: its labels ['good', 'bad', 'ugly'] are not those of task mood: ['bad', 'good']"
    )
    assert "teachers.mood-bert.labels" in remedy


def test_20_permuted_labels_are_fine(
    tutelage: Tutelage, tiny_run: TinyRun, tiny_model: TinyModel, tmp_path: Path
) -> None:
    teacher = {"task": "mood", "model": str(tiny_model("bert", ("good", "bad")))}
    code, out, _ = tutelage("check", written(tmp_path, changed(tiny_run(), "teachers.mood-bert", teacher)))
    assert code == 0
    assert re.search(rf"^teacher  mood-bert +of mood  {teacher['model']} +ready$", out, re.MULTILINE)


@pytest.mark.parametrize("text", ["", "text,label\n"])
def test_22_empty_split(tutelage: Tutelage, tiny_run: TinyRun, tmp_path: Path, text: str) -> None:
    run = tiny_run()
    file = Path(run["tasks"]["mood"]["data"]["data_files"]["validation"])
    file.write_text(text)
    assert refused(tutelage, run, tmp_path)[0].startswith(f"tasks.mood.data: {file} ")


def test_24_not_utf8(tutelage: Tutelage, tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run()
    file = Path(run["tasks"]["mood"]["data"]["data_files"]["train"])
    file.write_bytes(b"text,label\ngood,good\ncaf\xe9,bad\n")
    assert refused(tutelage, run, tmp_path)[0] == f"{file}:3: not UTF-8"


def test_25_wrong_column(tutelage: Tutelage, tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run()
    write_csv(Path(run["tasks"]["mood"]["data"]["data_files"]["train"]), [{"texts": "good", "label": "good"}])
    cause, remedy = refused(tutelage, run, tmp_path)
    assert cause == "tasks.mood: split train has no column 'text'; it has texts, label"
    assert remedy.startswith("Did you mean 'texts'?")


def test_26_duplicate_keys(tutelage: Tutelage, tiny_run: TinyRun, tmp_path: Path) -> None:
    text = yaml.safe_dump(tiny_run(), sort_keys=False)
    assert "duplicate key name" in refused(tutelage, text + "name: again\n", tmp_path)[0]
    twice = text.replace("tasks:\n", "tasks:\n  mood: {kind: text-classification, data: {path: csv}}\n", 1)
    assert "duplicate key mood" in refused(tutelage, twice, tmp_path)[0]


def test_27_unknown_key_and_bad_values(tutelage: Tutelage, tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run()
    assert refused(tutelage, run, tmp_path, "loss.temprature=2") == (
        "loss.temprature: unknown key",
        "Did you mean 'temperature'?",
    )
    assert refused(tutelage, run, tmp_path, "loss.temperature=0")[0].startswith("loss.temperature: ")
    weights = changed(run, "aggregation.teacher_weights", {"mood-bert": float("nan")})
    assert refused(tutelage, weights, tmp_path)[0].startswith("aggregation.teacher_weights.mood-bert: ")
    assert "is not key.path=value" in refused(tutelage, run, tmp_path, "train.epochs")[0]
    assert refused(tutelage, run, tmp_path, "train={epochs:3")[0].startswith("override 'train={epochs:3': ")


def test_28_weights(tutelage: Tutelage, tiny_run: TinyRun, tmp_path: Path) -> None:
    run = changed(tiny_run(), "aggregation.teacher_weights", {"mood-bert": 0, "mood-distilbert": 0})
    cause = "aggregation.teacher_weights: every teacher of mood has weight 0"
    assert refused(tutelage, run, tmp_path)[0] == cause
    run = changed(tiny_run(), "aggregation.teacher_weights", {"mood-bert": -1})
    assert refused(tutelage, run, tmp_path)[0].startswith("aggregation.teacher_weights.mood-bert: ")


def test_30_no_gpu(
    tutelage: Tutelage, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    cause, _ = refused(tutelage, tiny_run(), tmp_path, "train.gpus_per_worker=1")
    assert cause == "train.gpus_per_worker: a GPU is requested, this machine has none"


@pytest.mark.parametrize("model", ["somebody/no-such-model", "/no/such/folder"])
def test_35_no_such_teacher(tutelage: Tutelage, tiny_run: TinyRun, tmp_path: Path, model: str) -> None:
    cause, remedy = refused(tutelage, tiny_run(), tmp_path, f"teachers.mood-bert.model={model}")
    assert cause.startswith(f"teachers.mood-bert: no model '{model}'")
    assert remedy.startswith(
        "Relative paths start" if model.startswith("/") else "Check the name, the network"
    )


# Runs commands one after another in one process, for Ray's import is slow; tells how each ended.
COMMANDS_IN_ONE = """
import json, sys
from pipeline import cli
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["tutelage", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        print(f"exit {end.code}", file=sys.stderr)
import ray
print(ray.is_initialized())
"""


def test_33_and_34_one_launch_a_folder_and_one_config_too(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run()
    file = written(tmp_path, run)
    taken, begun, damaged = (tmp_path / "runs" / name for name in ("taken", "begun", "damaged"))
    for folder in (taken, begun, damaged):
        folder.mkdir(parents=True)
    (damaged / "inputs.json").write_text('{"tasks.mood')
    before = parse_config({**changed(run, "loss.temperature", 3.0), "name": "begun", "seed": 4})
    (begun / "config.yaml").write_text(to_yaml(before))
    commands = [
        ["train", str(file), "name=taken"],
        ["label", str(file), "name=begun"],
        ["train", str(file), "name=begun"],
        ["train", str(file), "name=damaged"],
    ]
    with FileLock(taken / ".lock"):
        done = subprocess.run(
            [sys.executable, "-c", COMMANDS_IN_ONE, json.dumps(commands)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    refusal = [
        f"error: {begun} was begun with something else: seed: 4 → 0; loss.temperature: 3.0 → 2.0",
        f"  Give this one another name (name=…), put it back as it was, or remove {begun}.",
        "exit 2",
    ]
    assert done.stderr.splitlines() == [
        f"error: another launch is using {taken}",
        "  Wait for it or stop it, or give this run another name: name=…",
        "exit 2",
        *refusal,
        *refusal,
        f"error: {damaged / 'inputs.json'} cannot be read: Unterminated string starting at: line 1 column 2 (char 1)",
        f"  Remove {damaged / 'inputs.json'} if data and models are what the run was begun with.",
        "exit 4",
    ]
    assert done.stdout == "False\n"
    assert (begun / "config.yaml").read_text() == to_yaml(before)


# ---------------------------------------------------------------- other commands


@pytest.mark.parametrize(
    "arguments", [("evaluate", "nowhere/x/y"), ("export", "nowhere/x/y", "--task", "mood", "--to", "out")]
)
def test_a_student_that_is_not_there(tutelage: Tutelage, arguments: tuple[str, ...]) -> None:
    code, _, err = tutelage(*arguments)
    assert code == 2
    cause, remedy = two_lines(err)
    assert cause.startswith("nowhere/x/y is no student of a run: there is no ")
    assert "runs/NAME/students/STUDENT" in remedy


def test_a_run_in_place_of_its_student_names_the_students(tutelage: Tutelage, tmp_path: Path) -> None:
    student = tmp_path / "runs" / "tiny" / "students" / "cut"
    (student / "mood").mkdir(parents=True)
    for near in (tmp_path / "runs" / "tiny", student / "mood"):
        code, _, err = tutelage("evaluate", near)
        assert code == 2
        assert two_lines(err)[1] == f"Give {student}, of a finished run."


def test_a_damaged_student_is_not_copied(
    tutelage: Tutelage, tiny_run: TinyRun, tiny_model: TinyModel, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "tiny"
    student, job = run / "students" / "cut", run / "checkpoints" / "cut-distilled"
    shutil.copytree(tiny_model("bert", ("bad", "good")), student / "mood")
    (run / "config.yaml").write_text(to_yaml(parse_config(tiny_run())))
    write_result(job, {"saved": {"mood": fingerprint(student / "mood")}}, {})
    code, _, err = tutelage("export", student, "--task", "mood", "--to", tmp_path / "whole")
    assert (code, err) == (0, "")
    weights = student / "mood" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    code, out, err = tutelage("export", student, "--task", "mood", "--to", tmp_path / "damaged")
    assert (code, out) == (4, "")
    assert "its checksum does not match" in two_lines(err)[0]
    assert not (tmp_path / "damaged").exists()


def test_a_student_of_an_unfinished_run(tutelage: Tutelage, tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run()
    student = tmp_path / "runs" / "tiny" / "students" / "cut"
    student.mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "config.yaml").write_text(to_yaml(parse_config(run)))
    code, _, err = tutelage("evaluate", student)
    assert code == 2
    assert two_lines(err)[0] == f"no student in {student / 'mood'}"
    code, _, err = tutelage("export", student, "--task", "mod", "--to", tmp_path / "out")
    assert code == 2
    assert two_lines(err) == ("there is no task 'mod'", "The run has mood, tone.")


def test_a_saved_student_is_scored_and_copied_out(
    tutelage: Tutelage, tiny_run: TinyRun, tiny_model: TinyModel, tmp_path: Path
) -> None:
    run = tiny_run()
    folder = tmp_path / "runs" / "tiny"
    for task, labels in (("mood", ("good", "bad")), ("tone", ("bad", "good", "plain"))):
        target = folder / "students" / "cut" / task
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(tiny_model("bert", labels))
    (folder / "config.yaml").write_text(to_yaml(parse_config(run)))
    code, out, err = tutelage("evaluate", folder / "students" / "cut", "--split", "validation")
    assert (code, err) == (0, "")
    assert "cut on validation" in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert rows["metric"] == ["mood", "tone"]
    assert rows["examples"] == ["16", "16"]
    assert {"accuracy", "macro_f1", "nll", "ece"} <= rows.keys()
    out_folder = tmp_path / "out"
    code, out, err = tutelage("export", folder / "students" / "cut", "--task", "tone", "--to", out_folder)
    assert (code, err) == (0, "")
    assert (out_folder / "model.safetensors").is_file()
    assert str(out_folder) in out
    code, _, err = tutelage("export", folder / "students" / "cut", "--task", "tone", "--to", out_folder)
    assert code == 2
    assert two_lines(err)[0] == f"--to {out_folder}: not empty"


def test_a_damaged_student_is_two_lines(
    tutelage: Tutelage, tiny_run: TinyRun, tiny_model: TinyModel, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "tiny"
    student = folder / "students" / "cut" / "mood"
    shutil.copytree(tiny_model("bert", ("good", "bad")), student)
    (folder / "config.yaml").write_text(to_yaml(parse_config(tiny_run())))
    weights = student / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    code, _, err = tutelage("evaluate", student.parent)
    assert code == 2
    assert two_lines(err)[0].startswith(f"{student}: its weights cannot be loaded: ")


# ---------------------------------------------------------------- ui


def test_ui_of_a_tracking_server_prints_its_addresses_and_ends(
    tutelage: Tutelage, tmp_path: Path, tiny_run: TinyRun
) -> None:
    uri = "https://me:hunter2@mlflow.example/base"
    run = tiny_run(tracking={"uri": uri, "experiment": "reviews"})
    file = written(tmp_path, run)
    code, out, err = tutelage("ui", file)
    assert (code, err) == (0, "")
    assert out == "MLflow\n  https://mlflow.example/base/#/experiments\n"
    ledger = Ledger(tmp_path / "runs" / "tiny" / "mlflow.json", str(redact("uri", uri)), "reviews")
    ledger.experiment_id = "7"
    ledger.views["students-tiny"] = {"title": "Students of tiny", "charts": False, "digest": ""}
    ledger.save()
    code, out, _ = tutelage("ui", file)
    page = "  https://mlflow.example/base/#/experiments/7/runs?workflowType=machine_learning"
    assert out.splitlines() == [
        "Students of tiny",
        f"{page}&viewStateShareKey=students-tiny",
        "All runs of reviews",
        page,
    ]
    assert "hunter2" not in out
