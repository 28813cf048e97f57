"""The command line app. Its commands are listed in pipeline order."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from furnclip import __version__, console
from furnclip.cli import arena, clean, demo, doctor, embed, evaluate, init, prepare, search, train
from furnclip.cli.options import CONTEXT_SETTINGS, FurnclipGroup

PIPELINE = ("init", "doctor", "clean", "prepare", "train", "eval", "embed", "search", "arena", "demo")


class PipelineGroup(FurnclipGroup):
    """Lists the commands in the order in which one needs them; typer would put sub-groups last."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in PIPELINE if name in self.commands]


app = typer.Typer(
    cls=PipelineGroup,
    context_settings=CONTEXT_SETTINGS,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    help="From a messy product CSV and a folder of images to furniture search that works, and proves it.",
    epilog="Example: furnclip demo    or, with your own data: furnclip init && furnclip doctor",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.say(f"furnclip {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


for module in (init, doctor, clean, prepare, train, evaluate, embed, search, arena, demo):
    module.register(app)
