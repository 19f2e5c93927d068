"""A config under several seeds: one plain run a seed, then a report on all of them.

Each run is the one that `tutelage train` would make of that seed alone: it can be resumed and compared. The same
command continues with the seed at which it stopped. Ray is started once; the runs share teachers and soft targets, as
any runs do.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType

from pipeline import run as runs
from pipeline.cluster import connected
from pipeline.config.resolved import Job
from pipeline.config.rounds import RoundsConfig
from pipeline.config.schema import RunConfig, name_of_seed
from pipeline.display.display import Display
from pipeline.files import write_atomically
from pipeline.report import group as reports
from pipeline.report.json_file import to_json
from pipeline.report.schema import GroupReport
from pipeline.run_folder import GROUP, GROUP_PAGE, REPORT, refuse_changes, write_settings
from pipeline.shared_runs import held
from pipeline.stop import StopSignals


def seed_configs(config: RunConfig) -> dict[int, RunConfig]:
    """The config of each seed's run, by seed: the group's, with its own name and seed; of a later round, each after its own seed's run."""
    tracking = config.tracking.model_copy(update={"experiment": config.experiment})
    shared = {"seeds": (), "tracking": tracking}
    return {
        seed: config.model_copy(
            update={
                **shared,
                "name": name_of_seed(config.name, seed),
                "seed": seed,
                "rounds": _after_seed(config.rounds, seed),
            }
        )
        for seed in config.seeds
    }


def _after_seed(rounds: RoundsConfig | None, seed: int) -> RoundsConfig | None:
    """The rounds of a seed's run: after the run of that seed, where they are after a group."""
    if rounds is None or rounds.after is None:
        return rounds
    return rounds.model_copy(update={"after": name_of_seed(rounds.after, seed)})


def distil_seeds(
    config: RunConfig,
    display: Display,
    register: str | None = None,
    trained: Mapping[int, Mapping[Job, Path]] = MappingProxyType({}),
) -> GroupReport:
    """Makes every seed's run, then group.json and group.md; returns the contents of group.json.

    register: name in MLflow's model registry for the first seed's students · trained: as `pipeline.run.distil` takes
    it, by seed.

    Raises any `TutelageError`; the runs of the earlier seeds stay.
    """
    folder, configs = config.run_dir, seed_configs(config)
    with held(config, display.line), StopSignals(folder) as stop:
        refuse_changes(config)  # the seeds' own folders guard data and models
        write_settings(config)
        for note in reports.seed_notes(config):
            display.line(note)
        finished = []
        with _ray_for(config, configs):
            stop.listen()
            for number, (seed, one) in enumerate(configs.items(), start=1):
                stop.check()
                display.begin(f"seed {seed} ({number} of {len(configs)}): {one.run_dir}")
                name = register if number == 1 else None
                finished.append(runs.distil(one, display, config.name, name, trained.get(seed, {})))
        group = reports.build(config.name, finished)
        write_atomically(folder / GROUP_PAGE, reports.markdown(group))
        write_atomically(folder / GROUP, to_json(group))
        return group


def _ray_for(config: RunConfig, configs: dict[int, RunConfig]) -> AbstractContextManager[None]:
    """One Ray for all seeds; none where every seed has its report already, so that probably no run needs it."""
    waiting = any(not (one.run_dir / REPORT).exists() for one in configs.values())
    return connected(config) if waiting else nullcontext()
