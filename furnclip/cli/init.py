"""`furnclip init`: a commented settings file to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from furnclip.cli.options import JsonOption


def register(app: typer.Typer) -> None:
    app.command("init", epilog="Example: furnclip init my-shop")(init)


def init(
    folder: Annotated[Path, typer.Argument(help="where to write", resolve_path=True)] = Path(),
    force: Annotated[bool, typer.Option("--force", help="overwrite existing files")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a commented furnclip.toml and .env.example."""
    from furnclip import console
    from furnclip.cli.ending import remember_folder
    from furnclip.config import write_templates

    remember_folder(folder)
    written = [str(path) for path in write_templates(folder, force=force)]

    def human() -> None:
        for path in written:
            console.say(f"wrote {path}")
        console.say("next: fill in the [paths] section, then run `furnclip doctor`")

    console.emit({"written": written}, as_json=as_json, human=human)
