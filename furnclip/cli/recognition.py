"""What `furnclip init` says about a catalogue: what it took for what, and why."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from furnclip import console
from furnclip.catalogue import Recognition, recognize
from furnclip.errors import InputError

_CATALOGUE = re.compile(r".*\.(csv|tsv|txt|tab|json|jsonl|ndjson|xml|rss|atom|parquet)(\.gz)?", re.IGNORECASE)
_USUAL_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "products.csv")
_SHOWN_COLUMNS = 12
_NAMES_TRIED = 40


def find_catalogue(place: Path) -> tuple[Path, Path | None]:
    """The folder to write to, and the catalogue, if there is one: a folder may hold one by a usual name."""
    if place.is_file():
        return Path.cwd(), place
    if _CATALOGUE.fullmatch(place.name) and not place.is_dir():
        raise InputError(f"there is no catalogue `{place}`", hint="name the file that your shop exported")
    folder = place.resolve()
    return folder, next((path for name in _USUAL_FILES if (path := folder / name).is_file()), None)


def settings_for(catalogue: Path, folder: Path) -> tuple[dict[str, Any], Recognition]:
    """The values of the section `paths` that fit a catalogue, and what it was recognized as."""
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
        found.settings["image_table"] = _shown(Path(table).resolve(), folder)
    paths = DataPaths(products=path, images=images, work=folder / "work", image_table=table)
    config = Config(paths=paths)
    if named and (best := likely_folder(config, named)):
        images, count = best
        reason = f"it has {count} of the {len(named)} images looked for"
    elif named:
        reason = "no folder near the catalogue has the images; put them here, or set it to where they are"
    settings = {"products": _shown(path, folder), "images": _shown(images, folder), **found.settings}
    found.reasons.update({"images": reason} if reason else {})
    return settings, found


def _shown(path: Path, folder: Path) -> str:
    """A path as it stands in a file of the folder."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def show(found: Recognition, paths: dict[str, Any]) -> None:
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


def as_payload(found: Recognition, paths: dict[str, Any]) -> dict[str, Any]:
    """For `--json`."""
    facts = asdict(found)
    del facts["images"]
    return {**facts, "settings": paths}
