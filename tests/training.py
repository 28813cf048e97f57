"""A prepared shop to train on, and runs in this process: a hundred times faster than starting another."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from furnclip.config import load_config
from furnclip.journal import read_journal
from furnclip.train import train
from furnclip.train.loop import Loop
from furnclip.train.prepared import Prepared, prepare_run
from furnclip.train.processes import Processes
from tests.conftest import Outcome, invoke, run_here
from tests.drawn_shop import write_shop
from tests.forked import Forked

SAID = "said.txt"
# Small steps and a checkpoint after each, so that there is something to kill.
SETTINGS = """
[train]
epochs = 3
lr = 0.01
effective_batch_size = 12
micro_batch_size = 4
lora_r = 4
lora_alpha = 8
lora_dropout = 0.1
checkpoint_interval_s = 0
caption_sampling = true
patience = 0
"""


def prepare_shop(folder: Path, model: Path) -> Path:
    """A shop of 60 products whose shards are made."""
    write_shop(folder, products=60, model=model)
    for command in (("clean", "run"), ("prepare",)):
        run_here(*command, cwd=folder).ok()
    with (folder / "furnclip.toml").open("a") as file:
        file.write(SETTINGS)
    return folder


def run_train(folder: Path, *, run: str = "", resume: bool = True, **flags: Any) -> dict[str, Any]:
    """One finished run; its card."""
    config = load_config(folder / "furnclip.toml", {"train": flags})
    return train(config, run=run, resume=resume)


def command(folder: Path, *args: str | Path) -> Outcome:
    """`furnclip ARGS` through its command line, in this process."""
    done = invoke(*args, "--config", folder / "furnclip.toml")
    return Outcome(done.exit_code, done.stdout, done.stderr)


def start_train(folder: Path, *args: str) -> Forked:
    """A running `furnclip train ARGS` in a process of its own, whose words go to `said.txt` in the folder."""
    with (folder / SAID).open("ab") as said:
        return Forked(["train", *args], folder, os.environ, said, said)


def end_train(folder: Path, *args: str) -> tuple[int, str]:
    """Exit code and what was said of a `furnclip train ARGS` that ended by itself."""
    (folder / SAID).unlink(missing_ok=True)
    code = start_train(folder, *args).wait(300)
    return code, (folder / SAID).read_text()


def wait_for_events(process: Forked, run: Path, count: int) -> None:
    """Until the run has logged so many events, or has ended."""
    while process.poll() is None and len(list(read_journal(run / "metrics.jsonl"))) < count:
        time.sleep(0.005)


def loop_of(
    folder: Path, run: str, *, model: dict[str, str] | None = None, **flags: Any
) -> tuple[Prepared, Loop]:
    """A run that is ready for its first step, and its loop without trackers."""
    config = load_config(folder / "furnclip.toml", {"train": flags, "model": model or {}})
    ready = prepare_run(config, config.paths.runs / run, Processes(), card=None)
    return ready, Loop(ready)


def weights_of(ready: Prepared) -> dict[str, Tensor]:
    """Every weight of the model, adapters included, as it is now."""
    return {name: value.detach().clone() for name, value in ready.encoder.clip.module.named_parameters()}


def losses(run: Path) -> list[tuple[int, float]]:
    """Step and loss of every step that the run took."""
    return [(e["step"], e["loss"]) for e in read_journal(run / "metrics.jsonl") if e["event"] == "step"]
