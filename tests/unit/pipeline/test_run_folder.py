"""One launch a run folder, with a real second process; no going on with another config or other data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from pipeline.config.load import load_config
from pipeline.errors import ConfigError, LockedError
from pipeline.run_folder import CONFIG, INPUTS, locked, refuse_changes, write_settings
from tests.unit.pipeline.tracked import config

# ---------------------------------------------------------------- the lock


def test_a_second_launch_is_refused_and_a_dead_ones_lock_is_recovered(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "run"
    hold = f"from pathlib import Path; from pipeline.run_folder import locked\nwith locked(Path({str(run_dir)!r})): print('held', flush=True); input()"
    first = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(LockedError) as caught, locked(run_dir):
            pytest.fail("two launches in one folder")
        assert caught.value.exit_code == 2
        assert caught.value.cause == f"another launch is using {run_dir}"
        with locked(tmp_path / "runs" / "other"):
            pass
    finally:
        first.kill()
        first.communicate()
    with locked(run_dir):
        pass


def test_the_lock_is_given_back(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a run that failed"), locked(tmp_path):
        raise RuntimeError("a run that failed")
    with locked(tmp_path), pytest.raises(LockedError), locked(tmp_path):
        pytest.fail("two launches in one process")
    with locked(tmp_path):
        pass


def test_a_time_out_inside_is_not_taken_for_the_lock(tmp_path: Path) -> None:
    with pytest.raises(filelock.Timeout), locked(tmp_path):
        raise filelock.Timeout("another lock")


# ---------------------------------------------------------------- the guard


def test_a_new_folder_takes_any_config_and_keeps_to_it(tmp_path: Path) -> None:
    settings, contents = config(tmp_path, "first"), {"tasks.movies.data": "a", "teachers.big.model": "b"}
    refuse_changes(settings, contents)
    write_settings(settings, contents)
    refuse_changes(settings, contents)
    assert load_config(settings.run_dir / CONFIG) == settings
    hotter = settings.model_copy(update={"loss": settings.loss.model_copy(update={"temperature": 4.0})})
    with pytest.raises(ConfigError, match=r"loss.temperature: None → 4.0") as caught:
        refuse_changes(hotter, contents)
    assert caught.value.remedy.endswith(f"or remove {settings.run_dir}.")
    with pytest.raises(
        ConfigError, match=r"begun with something else: tasks.movies.data: its content has changed"
    ):
        refuse_changes(settings, {**contents, "tasks.movies.data": "c"})


def test_a_run_does_not_go_on_with_other_derived_values(tmp_path: Path) -> None:
    settings, contents = config(tmp_path, "first"), {"tasks.movies.data": "a"}
    before = {"students.tiny.train.epochs": 24, "students.tiny.train.learning_rate": 7.3e-4}
    write_settings(settings, contents, before)
    refuse_changes(settings, contents, before)
    with pytest.raises(ConfigError) as caught:
        refuse_changes(settings, contents, {**before, "students.tiny.train.epochs": 18})
    assert caught.value.cause == (
        f"{settings.run_dir} was begun with something else: "
        "students.tiny.train.epochs: 24 → 18, as this version derives it"
    )
    assert "go on with the version that began it" in caught.value.remedy
    with pytest.raises(ConfigError, match="its content has changed"):  # the cause before its consequence
        refuse_changes(settings, {"tasks.movies.data": "b"}, {**before, "students.tiny.train.epochs": 18})


def test_more_than_three_changes_are_counted(tmp_path: Path) -> None:
    settings = config(tmp_path, "first")
    write_settings(settings, {str(number): "a" for number in range(5)})
    with pytest.raises(ConfigError, match=r"2: its content has changed \(and 2 more\)"):
        refuse_changes(settings, {str(number): "b" for number in range(5)})


def test_a_groups_folder_has_no_contents_of_its_own(tmp_path: Path) -> None:
    settings = config(tmp_path, "first").model_copy(update={"seeds": (0, 1)})
    write_settings(settings)
    assert not (settings.run_dir / INPUTS).exists()
    with pytest.raises(ConfigError) as caught:
        refuse_changes(settings.model_copy(update={"seeds": ()}))
    assert caught.value.remedy.endswith(f"or remove {settings.run_dir}.")
    with pytest.raises(ConfigError) as caught:
        refuse_changes(settings.model_copy(update={"baselines": ()}))
    assert caught.value.remedy.endswith(f"or remove {settings.run_dir} and {settings.run_dir}-seed….")
