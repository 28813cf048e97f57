"""Where figures of a run go: `metrics.jsonl` always, a progress bar on a terminal, W&B if asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from configparser import ConfigParser
from configparser import Error as ParserError
from pathlib import Path
from typing import Any

from furnclip import console
from furnclip.config import Config, environment_variables
from furnclip.errors import ConfigError, InputError
from furnclip.journal import encode_event, read_journal, read_text, write_bytes
from furnclip.runs import METRICS_NAME

_WANDB = "https://api.wandb.ai"
Tracker = Callable[[Mapping[str, Any]], None]


class WandbTracker:
    """Weights & Biases. The id is the run's own, so a resumed run keeps its page and no other run gets it."""

    def __init__(self, config: Config, run: Path, tracker_id: str) -> None:
        import wandb  # an extra, and slow to load

        _check_settings_of_folder(Path.cwd() / "wandb" / "settings")
        self._run = wandb.init(
            project=config.train.wandb_project,
            name=run.name,
            id=tracker_id,
            dir=str(run),
            mode="online" if config.train.wandb == "online" else "offline",
            resume="allow",
            config=json.loads(config.train.model_dump_json()),
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, event: Mapping[str, Any]) -> None:
        """The numbers of an event under `EVENT/NAME`, nested ones under `EVENT/GROUP/NAME`."""
        figures: dict[str, Any] = {}
        for name, value in event.items():
            nested = isinstance(value, Mapping)
            figures |= {f"{name}/{inner}": each for inner, each in value.items()} if nested else {name: value}
        step, kind = figures.pop("step"), figures.pop("event")
        numbers = {f"{kind}/{name}": value for name, value in figures.items() if value is not None}
        self._run.log(numbers, step=step)

    def log_model(self, folder: Path) -> None:
        """Keep the merged model as an artifact."""
        self._run.log_artifact(str(folder), name=f"{self._run.name}-model", type="model")

    def close(self) -> None:
        self._run.finish()


def _check_settings_of_folder(path: Path) -> None:
    """W&B sends its key to the address in this file of the current folder, whoever wrote it.

    Raises `ConfigError` for anything but what `wandb init` writes for W&B's own service.
    """
    parser = ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(read_text(path, what="W&B's settings", hint="move it away"))
        found = {name: value for section in parser.sections() for name, value in parser[section].items()}
    except FileNotFoundError:
        return
    except ParserError as error:
        raise ConfigError(f"`{path}` cannot be read: {error.message}", hint="move it away") from None
    harmless = {"entity": found.get("entity"), "project": found.get("project"), "base_url": _WANDB}
    if "WANDB_BASE_URL" in environment_variables():  # it overrules the file
        harmless["base_url"] = found.get("base_url")
    for name, value in found.items():
        if harmless.get(name) != value:
            raise ConfigError(
                f"`{path}` sets `{name}`, which could send your W&B key to another server",
                hint="move the file away; for a server of your own set WANDB_BASE_URL in your shell",
            )


def forget_after(run: Path, step: int) -> None:
    """Drop events of steps that the checkpoint does not know of; they will happen again."""
    path, kept = run / METRICS_NAME, []
    for event in read_journal(path):
        if not isinstance(event.get("step"), int):
            raise InputError(
                f"`{path}` has an event without its `step`",
                hint="restore the file from a backup, or start the run over with `--no-resume`",
            )
        if event["step"] <= step:
            kept.append(encode_event(event))
    if path.exists():
        write_bytes(path, b"".join(kept))


def progress_tracker(meter: console.Meter, *, epochs: int, total_steps: int) -> Tracker:
    """A tracker that moves a progress bar, with the latest figures beside it."""

    def show(event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            chance = f" (chance {event['chance']:.2f})" if event["chance"] else ""
            figures = f"epoch {event['epoch'] + 1}/{epochs}, loss {event['loss']:.3f}{chance}"
        else:
            figures = f"validation recall@1 {event['text_to_image_recall@1']:.3f}"
        meter.show(event["step"], total_steps, figures)

    return show
