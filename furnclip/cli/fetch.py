"""`furnclip fetch`: images from the web into the shop's own folder or bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from furnclip import console
from furnclip.cli.options import ConfigOption, Flags, JsonOption, sets, settings

if TYPE_CHECKING:
    from furnclip.fetch import FetchSummary


@sets("fetch.concurrency", "fetch.per_host")
def fetch(
    *,
    flags: Flags,
    config: ConfigOption = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="ask again for images that are there, and get changed ones")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring the images that the catalogue names by web address."""
    from furnclip.fetch import fetch as fetch_images

    summary = fetch_images(settings(config, flags), refresh=refresh)
    console.emit(summary.as_dict(), as_json=as_json, human=lambda: _show(summary))
    if summary.failed:
        console.warn(
            f"{sum(summary.failed.values()):,} images could not be fetched; `{summary.failed_csv}` has the "
            "reason of each, and the same command tries them again"
        )


def _show(summary: FetchSummary) -> None:
    if not summary.addresses:
        console.say(
            f"nothing to fetch: the catalogue names no web address; images are read from {summary.images}"
        )
        return
    if summary.kept == summary.addresses:
        console.say(f"nothing to do: all {summary.kept:,} images are in {summary.images}")
        return
    counts = ("fetched", "changed", "unchanged", "kept")
    rows = [[name, getattr(summary, name)] for name in counts if getattr(summary, name)]
    rows += [[f"failed: {reason}", count] for reason, count in summary.failed.items()]
    console.show_table(["", "images"], rows)
    console.say(f"{summary.fetched_bytes / 1e6:,.1f} MB fetched into {summary.images}")
