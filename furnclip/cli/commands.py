"""The command line: commands in pipeline order, and the three that need no shop: init, doctor and demo."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from furnclip import __version__, console
from furnclip.cli.arena import group as arena
from furnclip.cli.clean import group as clean
from furnclip.cli.ending import report
from furnclip.cli.options import CONTEXT_SETTINGS, Call, takes
from furnclip.cli.retrieval import embed, evaluate, export, search, serve
from furnclip.cli.stages import fetch, prepare, train, update
from furnclip.errors import InputError

if TYPE_CHECKING:
    from datetime import date

    from furnclip.catalogue import Recognition
    from furnclip.config import Config
    from furnclip.doctor import Check

_CATALOGUE = re.compile(r".*\.(csv|tsv|txt|tab|json|jsonl|ndjson|xml|rss|atom|parquet)(\.gz)?", re.IGNORECASE)
_USUAL_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "products.csv")
_SHOWN_COLUMNS = 12
_NAMES_TRIED = 40
_PRODUCTS = 1400  # in the demo's catalogue; a test compares it


@takes(config=False)
def init(
    call: Call,
    place: Annotated[
        Path,
        typer.Argument(metavar="[CATALOGUE|FOLDER]", help="your catalogue; or the folder where to write"),
    ] = Path(),
    force: Annotated[bool, typer.Option("--force", help="overwrite existing files")] = False,
) -> None:
    """Write a commented furnclip.toml and .env.example, fit for a catalogue."""
    from furnclip.config import write_templates

    folder, catalogue = _find_catalogue(place)
    call.written.append(folder)
    paths, found = _settings_for(catalogue, folder) if catalogue else ({}, None)
    written = [str(path) for path in write_templates(folder, force=force, paths=paths)]
    if found:
        _show_recognized(found, paths)

    def human() -> None:
        for path in written:
            console.say(f"wrote {path}")
        if not written:
            console.say("nothing to do: both files are there already")
        todo = "fill in the [paths] section, then run" if not found else "run"
        console.say(f"next: {todo} `furnclip doctor`")

    payload: dict[str, Any] = {"written": written}
    if found:
        payload["recognized"] = {**asdict(found), "settings": paths}
        del payload["recognized"]["images"]
    call.emit(payload, human)


def _find_catalogue(place: Path) -> tuple[Path, Path | None]:
    """The folder to write to, and the catalogue, if there is one: a folder may hold one by a usual name."""
    if place.is_file():
        return Path.cwd(), place
    if _CATALOGUE.fullmatch(place.name) and not place.is_dir():
        raise InputError(f"there is no catalogue `{place}`", hint="name the file that your shop exported")
    folder = place.resolve()
    return folder, next((path for name in _USUAL_FILES if (path := folder / name).is_file()), None)


def _settings_for(catalogue: Path, folder: Path) -> tuple[dict[str, Any], Recognition]:
    """The values of the section `paths` that fit a catalogue, and what it was recognized as."""
    from furnclip.catalogue import recognize
    from furnclip.config import Config, DataPaths
    from furnclip.sources import web_address
    from furnclip.survey import likely_folder
    from furnclip.vectors import PRODUCT_COLUMNS

    found = recognize(catalogue, reserved=PRODUCT_COLUMNS)
    path = catalogue.resolve()
    images = folder / DataPaths().images
    inside = {
        name for name in found.images if re.fullmatch(rf"{re.escape(path.stem)}/[0-9a-f]{{16}}\.img", name)
    }
    addresses = {name for name in found.images if web_address(name)}
    named = [name for name in dict.fromkeys(found.images) if name not in inside | addresses][:_NAMES_TRIED]
    reason = f"{len(addresses):,} web addresses, which `furnclip fetch` brings here" if addresses else ""
    reason = "the images inside the file are written here" if inside else reason
    table = found.settings.get("image_table", "")
    if table:
        found.settings["image_table"] = _place_shown(Path(table).resolve(), folder)
    paths = DataPaths(products=path, images=images, work=folder / "work", image_table=table)
    config = Config(paths=paths)
    if named and (best := likely_folder(config, named)):
        images, count = best
        reason = f"it has {count} of the {len(named)} images looked for"
    elif named:
        reason = "no folder near the catalogue has the images; put them here, or set it to where they are"
    settings = {
        "products": _place_shown(path, folder),
        "images": _place_shown(images, folder),
        **found.settings,
    }
    found.reasons.update({"images": reason} if reason else {})
    return settings, found


def _place_shown(path: Path, folder: Path) -> str:
    """A path as it stands in a file of the folder."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _show_recognized(found: Recognition, paths: dict[str, Any]) -> None:
    """Say on stderr what was taken for what."""
    console.note(f"`{paths['products']}` is read as {found.format}: {found.why}")
    if found.others:
        console.warn(
            f"it fits {', '.join(found.others)} as well; change the settings below if it is that instead"
        )
    if found.rows != found.products:
        console.note(f"the first {found.rows:,} rows make {found.products:,} products")
    for name, reason in found.reasons.items():
        console.note(f"  paths.{name} = {paths[name]!r}: {reason}")
    told = [column for column in found.columns if column.kind in ("number", "boolean", "date")]
    names = [
        f"{column.name} ({column.kind}"
        + (f", from `{column.source}`)" if column.source != column.name else ")")
        for column in told[:_SHOWN_COLUMNS]
    ]
    more = f" and {len(told) - _SHOWN_COLUMNS} more" if len(told) > _SHOWN_COLUMNS else ""
    if names:
        console.note(f"a search can filter by {', '.join(names)}{more}")


@takes(config=False)
def demo(
    call: Call,
    folder: Annotated[
        Path, typer.Argument(help="an empty or new folder for the tour", resolve_path=True)
    ] = Path("furnclip-demo"),
    products: Annotated[
        int,
        typer.Option("--products", min=20, max=_PRODUCTS, help="number of products of the bundled catalogue"),
    ] = _PRODUCTS,
    seed: Annotated[int, typer.Option("--seed", min=0, help="seed of the splits and of training")] = 0,
) -> None:
    """Run every command on a bundled catalogue of drawings: offline, on any machine, in minutes."""
    from furnclip.demo import take_tour

    tour = take_tour(folder, products=products, seed=seed, quietly=call.as_json)
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

    call.emit(payload, show)


@takes()
def doctor(
    call: Call,
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
) -> None:
    """Check Python, torch, device, base model, OpenAI key, bucket, disk and viewer."""
    from furnclip.doctor import check_terminal, examine, outcome

    options = call.settings(trust=trust)
    checks = examine(options, ask_provider=lambda: _ask_provider(options), write_probe=write_probe)
    is_ready = all(check.status != "fail" for check in checks)
    if probe:
        checks.append(outcome("terminal", check_terminal))
    payload = {"ready": is_ready, "checks": [asdict(check) for check in checks]}
    call.emit(payload, lambda: _show(checks, options.arena.viewer))
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
    console.show_bytes(show_image(TEST_CARD, viewer, cols=36, rows=9).data)


# In the order in which one needs them, with what stands under the help of each.
COMMANDS: dict[str, tuple[Any, str]] = {
    "init": (init, "Example: furnclip init products.csv    or, for a new folder: furnclip init my-shop"),
    "doctor": (doctor, "Example: furnclip doctor"),
    "fetch": (fetch, "Example: furnclip fetch    or, to get changed images: furnclip fetch --refresh"),
    "clean": (clean, "Example: furnclip clean run --backend local"),
    "prepare": (prepare, "Example: furnclip prepare --check && furnclip prepare --upload"),
    "train": (train, "Example: furnclip train --scenario dual_lora --effective-batch-size 1024"),
    "eval": (evaluate, "Example: furnclip eval --run first --run second"),
    "embed": (embed, "Example: furnclip embed --run my-run"),
    "update": (update, "Example, every night at two: 0 2 * * * cd /shop && furnclip update"),
    "search": (
        search,
        'Example: furnclip search "walnut sideboard" --where "color = \'brown\'" --not glass -k 5',
    ),
    "export": (export, "Example: furnclip export --onnx encoders --int8"),
    "serve": (serve, "Example: furnclip serve --port 8321"),
    "arena": (arena, "Example: furnclip arena --rater anna --queries texts"),
    "demo": (demo, "Example: furnclip demo    or: furnclip demo my-tour --products 200 --seed 1"),
}


class PipelineGroup(TyperGroup):
    """Turns errors into `error:` and `hint:` on stderr and the right exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)  # typer would put sub-groups last

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, SystemExit):
            raise
        except BaseException as error:
            raise typer.Exit(report(error)) from None


app = typer.Typer(
    cls=PipelineGroup,
    context_settings=CONTEXT_SETTINGS,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    help="From a messy product CSV and a folder of images to furniture search that works, and proves it.",
    epilog="Example: furnclip demo    or, with your own data: furnclip init && furnclip doctor",
)
for _name, (_command, _epilog) in COMMANDS.items():
    if isinstance(_command, typer.Typer):
        app.add_typer(_command, name=_name, epilog=_epilog)
    else:
        app.command(_name, epilog=_epilog)(_command)


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
