"""`furnclip embed`: vectors and search table of the whole catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from furnclip import console
from furnclip.cli import options
from furnclip.cli.options import ConfigOption, Flags, JsonOption
from furnclip.errors import InputError

if TYPE_CHECKING:
    from furnclip.embed import Summary

_COUNTS = (
    *("products", "rejected", "uncleaned", "missing", "encoded"),
    *("row_groups", "row_groups_encoded", "row_groups_begun"),
)


@options.sets("model.name", "embed.batch_size", "embed.dtype")
def embed(
    *,
    flags: Flags,
    config: ConfigOption = None,
    run: Annotated[
        str | None, typer.Option("--run", help="fine-tuned run; default: the latest finished one")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Encode every product once and build the search table; only what changed is encoded again."""
    options.check_address_space()
    from furnclip.clean.workspace import check_finished
    from furnclip.embed import embed_catalogue

    chosen = options.settings(config, flags)
    check_finished(chosen.paths)
    summary = embed_catalogue(chosen, run=run)
    if summary.index is None:
        return  # under torchrun, only process 0 prints the summary
    options.mention_raw_titles(chosen)
    if summary.was_there:
        console.note("nothing to do: every product is embedded by these models already")
    if summary.uncleaned:
        console.warn(
            f"{summary.uncleaned} rows of `{chosen.paths.products}` are not here: they were added after "
            "cleaning or lie beyond its limit; `furnclip clean run` cleans them"
        )
    payload = {
        "vectors": str(summary.vectors),
        "index": summary.index.uri,
        "search": "exact" if summary.index.exact else "ivf",
        **{name: getattr(summary, name) for name in _COUNTS},
        "seconds": round(summary.seconds, 3),
        "up_to_date": summary.was_there,
        "models": {label: model.model_dump() for label, model in summary.provenance.models.items()},
    }
    console.emit(payload, as_json=as_json, human=lambda: _show(summary))
    if sum(summary.missing.values()) == summary.products:
        raise InputError(
            "no product has an image that can be read, so only keywords find anything",
            hint=f"see `{summary.missing_file}` for the reason of each",
        )


def _show(summary: Summary) -> None:
    rows = [
        (label, model.name, model.precision, summary.encoded.get(label, 0), model.image_weight)
        for label, model in summary.provenance.models.items()
    ]
    title = f"{summary.products} products in {summary.seconds:.1f} s"
    console.show_table(("vectors", "model", "precision", "encoded", "image weight"), rows, title=title)
    for reason, count in sorted(summary.missing.items()):
        console.say(f"without an image: {count} ({reason}), see {summary.missing_file}")
    if summary.rejected:
        console.say(f"rejected rows: {summary.rejected}, see {summary.rejected_file}")
    console.say(f"vectors: {summary.vectors}")
    console.say('next: furnclip search "a red armchair"')
