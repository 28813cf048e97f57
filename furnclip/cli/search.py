"""`furnclip search`: a text, an image or both to ranked products."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from furnclip import console
from furnclip.cli.options import ConfigOption, Flags, JsonOption, check_address_space, sets, settings

if TYPE_CHECKING:
    from furnclip.search import Hit, Searcher


@sets("search.k", "search.mode", "search.image_weight")
def search(
    *,
    flags: Flags,
    text: Annotated[str | None, typer.Argument(help="what to look for")] = None,
    image: Annotated[
        Path | None, typer.Option("--image", help="look for products like this image", resolve_path=True)
    ] = None,
    where: Annotated[
        str | None, typer.Option("--where", help="SQL filter, e.g. \"color = 'brown' AND style <> ''\"")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--not", help="word that hits must not have, repeatable")
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", help="draw the hits as a contact sheet")] = False,
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="ask again and again; the model stays loaded")
    ] = False,
    run: Annotated[
        str | None, typer.Option("--run", help="search the vectors of this run; default: those embedded")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="search the vectors of this base model")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find products by meaning, by word or by image."""
    check_address_space()
    from furnclip.search import Searcher

    searcher = Searcher(settings(config, flags), run=run, model=model)
    for query in _queries(text, image, interactive=interactive):
        start = time.perf_counter()
        hits = searcher.search(query, image=image, where=where, exclude=exclude or [])
        seconds = time.perf_counter() - start
        _answer(searcher, hits, query, seconds=seconds, preview=preview, as_json=as_json)


def _queries(text: str | None, image: Path | None, *, interactive: bool) -> Iterator[str | None]:
    """The text given; then, with `--interactive`, one line after another until an empty one."""
    if text or image or not interactive:
        yield text
    lines = typer.get_text_stream("stdin", errors="replace")  # once: each stream reads ahead for itself
    while interactive:
        console.note("search for (an empty line ends):")
        line = lines.readline().strip()
        if not line:
            return
        yield line


def _answer(
    searcher: Searcher, hits: list[Hit], text: str | None, *, seconds: float, preview: bool, as_json: bool
) -> None:
    payload: dict[str, Any] = {
        "query": text,
        "mode": searcher.config.search.mode if (text or "").strip() else "vector",
        "model": searcher.clip.name,
        "products": searcher.table.count_rows(),
        "seconds": round(seconds, 4),
        "hits": [hit.as_dict() for hit in hits],
    }
    if preview:
        payload["preview"] = str(_draw(searcher, hits, quiet=as_json))

    def show() -> None:
        if not hits:
            console.say("no product matches")
            return
        rows = []
        for place, hit in enumerate(hits, start=1):
            title = hit.clean_title or hit.title
            rows.append((place, hit.score, hit.product_id, title, hit.color, hit.material, hit.style))
        columns = ("", "score", "id", "title", "color", "material", "style")
        console.show_table(columns, rows, title=f"{len(hits)} hits in {seconds * 1000:.0f} ms")

    console.emit(payload, as_json=as_json, human=show)


def _draw(searcher: Searcher, hits: list[Hit], *, quiet: bool) -> Path:
    """Write the contact sheet and, on a terminal, draw it; its path."""
    from furnclip.search import write_preview
    from furnclip.viewers import show_image

    paths = searcher.config.paths
    sheet = write_preview(hits, paths.images, paths.cache / "search" / "preview.jpg")
    if not quiet:
        drawing = show_image(sheet, searcher.config.arena.viewer, cache=paths.cache / "viewer")
        console.show_bytes(drawing.data)
        console.say(f"preview: {sheet}")
    return sheet
