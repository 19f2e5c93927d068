"""A training step that keeps freed memory ÷ one that does not (`pipeline.memory.freed_memory_kept`): CPU seconds and peaks of memory.

    python -m benchmarks.kept_memory [--model smollm2] [--layers 6] [--steps 10] [--rounds 3]

Each measurement is a process of one thread, with one arena as those of a private Ray have it, which takes AdamW's steps in fp32 with 16 random texts of
40 to 90 tokens. A language model has the first `layers` of its layers, another model has all and a head for three labels.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from contextlib import nullcontext

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from benchmarks.common import ASSETS, machine, paired, ratios, spread
from pipeline.memory import freed_memory_kept

TEXTS, SHORTEST, LONGEST = 16, 40, 90
FIRST = 3
"""Steps that are not timed."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=("kept", "freed"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        measure(arguments.model, arguments.layers, arguments.steps, kept=arguments.child == "kept")
        return
    peaks: dict[str, list[float]] = {"kept": [], "freed": []}

    def seconds(child: str) -> float:
        command = [sys.executable, "-m", "benchmarks.kept_memory", *sys.argv[1:], "--child", child]
        environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        values = json.loads(done.stdout.splitlines()[-1])
        peaks[child].append(values["peak_gb"])
        return float(values["seconds"])

    kept, freed = paired(arguments.rounds, lambda: seconds("kept"), lambda: seconds("freed"))
    print(machine())
    print(f"{arguments.model}, CPU seconds a step: kept {spread(kept)}, freed {spread(freed)}")
    print(f"kept ÷ freed: {spread(ratios(kept, freed))}")
    print(f"peak GB: kept {spread(peaks['kept'])}, freed {spread(peaks['freed'])}")


def measure(name: str, layers: int, steps: int, *, kept: bool) -> None:
    """Prints the mean CPU seconds of a step and this process's peak of memory, as JSON."""
    torch.set_num_threads(1)
    draws = torch.Generator().manual_seed(0)
    model, writes = load(name, layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    model.train()
    started = 0.0
    with freed_memory_kept() if kept else nullcontext():
        for step in range(FIRST + steps):
            if step == FIRST:
                started = time.process_time()
            length = int(torch.randint(SHORTEST, LONGEST, (), generator=draws))
            ids = torch.randint(0, model.config.vocab_size, (TEXTS, length), generator=draws)
            labels = ids if writes else torch.randint(0, 3, (TEXTS,), generator=draws)
            model(input_ids=ids, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        seconds = (time.process_time() - started) / steps
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({"seconds": seconds, "peak_gb": peak}))


def load(name: str, layers: int) -> tuple[PreTrainedModel, bool]:
    """The model, and whether it is a language model."""
    folder = ASSETS / name
    writes = "CausalLM" in str(AutoConfig.from_pretrained(folder).architectures)
    if writes:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, num_hidden_layers=layers)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, num_labels=3)
    return model, writes


if __name__ == "__main__":
    main()
