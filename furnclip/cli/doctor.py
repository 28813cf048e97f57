"""`furnclip doctor`: is this machine ready?"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from furnclip import console
from furnclip.cli.options import ConfigOption, JsonOption, settings

if TYPE_CHECKING:
    from datetime import date

    from furnclip.config import Config
    from furnclip.doctor import Check


def doctor(
    probe: Annotated[
        bool, typer.Option("--probe", help="ask the terminal which image formats it can draw")
    ] = False,
    write_probe: Annotated[
        bool,
        typer.Option("--write-probe", help="put a small object into the bucket, read it, delete it again"),
    ] = False,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="allow this folder's settings that start programs or send keys elsewhere",
            is_eager=True,  # `.env` is read while the options are parsed
        ),
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check Python, torch, device, base model, OpenAI key, bucket, disk and viewer."""
    from furnclip.doctor import check_terminal, examine, outcome

    options = settings(config, trust=trust)
    checks = examine(options, ask_provider=lambda: _ask_provider(options), write_probe=write_probe)
    is_ready = all(check.status != "fail" for check in checks)
    if probe:
        checks.append(outcome("terminal", check_terminal))
    payload = {"ready": is_ready, "checks": [asdict(check) for check in checks]}
    console.emit(payload, as_json=as_json, human=lambda: _show(checks, options.arena.viewer))
    if not is_ready:
        raise typer.Exit(1)


def _ask_provider(options: Config) -> tuple[date | None, str]:
    """The shutdown date and the successor of the cleaning model; rooms do not import each other."""
    from furnclip.clean.batch.requests import find_model
    from furnclip.clean.batch.service import BatchService
    from furnclip.doctor import NETWORK_S

    clean = options.clean.model_copy(update={"timeout_s": NETWORK_S})
    service = BatchService(options.model_copy(update={"clean": clean}))
    return service.shutdown_date(clean.model), find_model(clean).successor


def _show(checks: list[Check], viewer: str | tuple[str, ...]) -> None:
    """The checks; then a test image: a round circle on a color ramp and gray, or another viewer is needed."""
    from furnclip.viewers import TEST_CARD, show_image

    for check in checks:
        hint = f"; {check.hint}" if check.hint else ""
        console.say(f"{check.status:<5} {check.name:<11} {check.message}{hint}")
    with tempfile.TemporaryDirectory() as folder:  # a doctor leaves nothing behind
        card = show_image(TEST_CARD, viewer, cache=Path(folder), cols=36, rows=9)
        console.show_bytes(card.data)
