"""The command line app: its commands in pipeline order, and the two of them that need no settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from furnclip import __version__, console
from furnclip.cli import arena, clean, prepare, train
from furnclip.cli.doctor import doctor
from furnclip.cli.ending import written_folders
from furnclip.cli.export import export
from furnclip.cli.fetch import fetch
from furnclip.cli.options import CONTEXT_SETTINGS, FurnclipGroup, JsonOption
from furnclip.cli.retrieval import embed, evaluate, search
from furnclip.cli.serving import serve
from furnclip.cli.update import update

PIPELINE = (
    "init",
    "doctor",
    "fetch",
    "clean",
    "prepare",
    "train",
    "eval",
    "embed",
    "update",
    "search",
    "export",
    "serve",
    "arena",
    "demo",
)
_PRODUCTS = 700  # in the demo's catalogue; a test compares it


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
for module in (clean, prepare, train, arena):
    module.register(app)
app.command("doctor", epilog="Example: furnclip doctor")(doctor)
app.command("fetch", epilog="Example: furnclip fetch    or, to get changed images: furnclip fetch --refresh")(
    fetch
)
app.command("eval", epilog="Example: furnclip eval --run first --run second")(evaluate)
app.command("embed", epilog="Example: furnclip embed --run my-run")(embed)
app.command("update", epilog="Example, every night at two: 0 2 * * * cd /shop && furnclip update")(update)
app.command(
    "search",
    epilog='Example: furnclip search "walnut sideboard" --where "color = \'brown\'" --not glass -k 5',
)(search)
app.command("export", epilog="Example: furnclip export --onnx encoders --int8")(export)
app.command("serve", epilog="Example: furnclip serve --port 8321")(serve)


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


@app.command(
    "init", epilog="Example: furnclip init products.csv    or, for a new folder: furnclip init my-shop"
)
def init(
    place: Annotated[
        Path,
        typer.Argument(metavar="[CATALOGUE|FOLDER]", help="your catalogue; or the folder where to write"),
    ] = Path(),
    force: Annotated[bool, typer.Option("--force", help="overwrite existing files")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a commented furnclip.toml and .env.example, fit for a catalogue."""
    from furnclip.cli.recognition import as_payload, find_catalogue, settings_for, show
    from furnclip.config import write_templates

    folder, catalogue = find_catalogue(place)
    written_folders.append(folder)
    paths, found = settings_for(catalogue, folder) if catalogue else ({}, None)
    written = [str(path) for path in write_templates(folder, force=force, paths=paths)]
    if found:
        show(found, paths)

    def human() -> None:
        for path in written:
            console.say(f"wrote {path}")
        todo = "fill in the [paths] section, then run" if not found else "run"
        console.say(f"next: {todo} `furnclip doctor`")

    payload = {"written": written, **({"recognized": as_payload(found, paths)} if found else {})}
    console.emit(payload, as_json=as_json, human=human)


@app.command("demo", epilog="Example: furnclip demo    or: furnclip demo my-tour --products 200 --seed 1")
def demo(
    folder: Annotated[
        Path, typer.Argument(help="an empty or new folder for the tour", resolve_path=True)
    ] = Path("furnclip-demo"),
    products: Annotated[
        int,
        typer.Option("--products", min=20, max=_PRODUCTS, help="number of products of the bundled catalogue"),
    ] = _PRODUCTS,
    seed: Annotated[int, typer.Option("--seed", min=0, help="seed of the splits and of training")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Run every command on a bundled catalogue of drawings: offline, on any machine, in minutes."""
    from furnclip.demo import take_tour

    tour = take_tour(folder, products=products, seed=seed, quietly=as_json)
    total_seconds = sum(tour.seconds.values())
    payload = {
        "folder": str(tour.folder),
        "seconds": dict(tour.seconds),
        "total_seconds": round(total_seconds, 1),
        "already_done": list(tour.skipped),
        "scores": tour.scores(),
        "report": str(tour.report),
    }

    def show() -> None:
        if len(tour.skipped) == len(tour.seconds):
            console.say(f"\nthe tour in {tour.folder} is finished already; nothing to do")
        console.say(f"{total_seconds:.0f} seconds of work; images and intervals: {tour.report}")
        console.say("next, vote blindly between two models:")
        console.say(f"    cd {tour.folder} && furnclip arena")
        console.say("next, your own products:")
        console.say("    furnclip init my-shop && cd my-shop && furnclip doctor")
        rows = [tuple(score.values())[:4] for score in tour.scores()]
        console.show_table(("model", "recall@1", "recall@5", "MRR"), rows, title="text to image, test split")
        for score in tour.scores()[1:]:
            gain, low, high = score["mrr_gain"]
            told = "better" if low > 0 else "worse" if high < 0 else "not clearly better"
            console.say(
                f"{score['model']}: {told} than the base, MRR {gain:+.3f} ({low:+.3f} to {high:+.3f})"
            )

    console.emit(payload, as_json=as_json, human=show)
