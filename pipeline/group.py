"""A config under several seeds: one plain run a seed, then the group's page about all of them.

The runs are those that `tutelage train` would make one by one: resumable, comparable, and the same command goes on
with the seed at which it stopped. Ray is started once; teachers and soft targets are shared as by any runs.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from pipeline import run as runs
from pipeline.cluster import connected
from pipeline.config import view as config_view
from pipeline.config.load import load_config
from pipeline.config.schema import RunConfig
from pipeline.display import Display
from pipeline.errors import ConfigError
from pipeline.files import write_atomically
from pipeline.report import group as reports
from pipeline.stop import StopSignals, locked


def seed_configs(config: RunConfig) -> dict[int, RunConfig]:
    """By seed, the config of its run: a name of its own, everything else the group's."""
    tracking = config.tracking.model_copy(update={"experiment": config.experiment})
    shared = {"seeds": (), "tracking": tracking}
    return {
        seed: config.model_copy(update={**shared, "name": config.name_of_seed(seed), "seed": seed})
        for seed in config.seeds
    }


def train(config: RunConfig, display: Display, register: str | None = None) -> dict[str, Any]:
    """Every seed's run, then group.json and group.md; returns what group.json holds.

    register: name in MLflow's model registry for the first seed's students.

    Raises any `TutelageError`; what the seeds before it have done stays.
    """
    folder, configs = config.run_dir, seed_configs(config)
    with locked(folder), StopSignals(folder) as stop:
        _settle(config)
        for note in config_view.seed_notes(config):
            display.line(note)
        found = []
        with _ray_for(config, configs):
            stop.listen()
            for number, (seed, one) in enumerate(configs.items(), start=1):
                stop.check()
                display.begin(f"seed {seed} ({number} of {len(configs)}): {one.run_dir}")
                found.append(runs.train(one, display, config.name, register if number == 1 else None))
        group = reports.build(config.name, found)
        write_atomically(folder / reports.PAGE, reports.markdown(group))
        write_atomically(folder / reports.FILE, json.dumps(group, indent=2, ensure_ascii=False) + "\n")
        return group


def _ray_for(config: RunConfig, configs: dict[int, RunConfig]) -> AbstractContextManager[None]:
    """One Ray for all seeds, unless every seed has its report already and probably needs none."""
    waiting = any(not (one.run_dir / "report.json").exists() for one in configs.values())
    return connected(config) if waiting else nullcontext()


def _settle(config: RunConfig) -> None:
    """Refuses a folder that a single run or another config began; writes the config down.

    Data and models are guarded in the seeds' own folders.
    """
    settings: Path = config.run_dir / "config.yaml"
    if settings.exists() and (changed := config_view.differences(load_config(settings), config)):
        raise ConfigError(
            f"{config.run_dir} was begun with something else: {'; '.join(changed[:3])}",
            f"Give the group another name (name=…), put it back as it was, or remove {config.run_dir} "
            f"and {config.run_dir}-seed….",
        )
    write_atomically(settings, config_view.to_yaml(config))
