"""`furnclip fetch` and `prepare`: images from the web, and with the rows to shards without leaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

import furnclip
from furnclip import console
from furnclip.cli.options import Call, mention_raw_titles, mention_uncleaned, takes

if TYPE_CHECKING:
    from furnclip.config import Config
    from furnclip.fetch import FetchSummary
    from furnclip.prepare import CheckReport, PrepareSummary
    from furnclip.survey import Survey

_LARGE_GROUP_SHARE = 0.1
_SHOWN_TYPES = 8
_SHARED = {
    "title": "their title: set `paths.group_column` to the column that tells variants apart",
    "group": "their group: check `paths.group_column`",
    "image": "one image: if it stands for a missing one, take it out of these rows",
    "near-duplicates": "images that look alike: check a few of them",
}


@takes("fetch.concurrency", "fetch.per_host")
def fetch(
    call: Call,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="ask again for images that are there, and get changed ones")
    ] = False,
) -> None:
    """Bring the images that the catalogue names by web address."""
    from furnclip.fetch import fetch as fetch_images

    summary = fetch_images(call.settings(), refresh=refresh)
    call.emit(summary.as_dict(), lambda: _show_fetched(summary))
    if summary.failed:
        console.warn(
            f"{sum(summary.failed.values()):,} images could not be fetched; `{summary.failed_csv}` has the "
            "reason of each, and the same command tries them again"
        )


def _show_fetched(summary: FetchSummary) -> None:
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


@takes("prepare.workers", "prepare.engine", "storage.bucket", "storage.prefix")
def prepare(
    call: Call,
    check: Annotated[
        bool, typer.Option("--check", help="report unusable rows by reason; write nothing")
    ] = False,
    upload: Annotated[
        bool, typer.Option("--upload", help="copy the shards to the S3 bucket afterwards")
    ] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="decode every image again")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="draw new splits too: never compare with models trained before")
    ] = False,
) -> None:
    """Split products without leaks and pack them into shards."""
    from furnclip.clean.workspace import check_finished
    from furnclip.errors import InputError
    from furnclip.prepare import prepare as prepare_shards
    from furnclip.survey import advice

    options = call.settings()
    if options.paths.cleaned.is_file() or not check:
        try:
            check_finished(options.paths)
        except InputError as error:
            error.hint = "; ".join(filter(None, (advice(options), error.hint)))
            raise
    if check:
        _check(call, options)
        return
    if upload:
        with furnclip.S3Manager.from_config(options.storage) as manager:
            manager.check()  # before hours of decoding, not after
    summary = prepare_shards(options, fresh=fresh, rebuild=rebuild)
    mention_raw_titles(options)
    payload = summary.as_dict()
    if upload:
        with furnclip.S3Manager.from_config(options.storage) as manager:
            transfer = manager.upload_dataset(summary.folder, options.storage.shards)
        to = f"s3://{options.storage.bucket}/{options.storage.shards}"
        payload["upload"] = {"to": to, **vars(transfer)}
    call.emit(payload, lambda: _show_summary(summary))
    if upload and not call.as_json:
        console.say(f"uploaded {transfer.sent} files to {to}; {transfer.kept} were there already")


def _check(call: Call, options: Config) -> None:
    """What would become of each row, by reason. Raises `InputError` where none can be used."""
    from furnclip.errors import InputError
    from furnclip.prepare import check
    from furnclip.survey import survey

    report = check(options)
    counts = survey(options) if options.paths.products.is_file() else None
    payload = {**report.as_dict(), "raw_catalogue": vars(counts) if counts else None}
    call.emit(payload, lambda: _show_report(report, counts))
    if not report.usable:
        usual = "the table above counts the reasons; fix the most frequent one first"
        advice = counts.advice if counts and report.reasons else ""
        raise InputError(f"no row of `{report.catalogue}` can be used", hint=advice or usual)


def _show_report(report: CheckReport, counts: Survey | None) -> None:
    if counts:
        console.say("; ".join(filter(None, (counts.text(), counts.advice))))
    console.say(f"{report.usable} of {report.rows} rows of {report.catalogue} can be used")
    if report.reasons:
        shown = {
            reason: "; ".join(f"row {example['row']}: {example['detail']}" for example in examples)
            for reason, examples in report.examples.items()
        }
        rows = [[reason, count, shown[reason]] for reason, count in report.reasons.items()]
        console.show_table(["reason", "rows", "first of them"], rows)
    mention_uncleaned(report.not_cleaned)


def _show_summary(summary: PrepareSummary) -> None:
    from furnclip.prepare import spread

    if not summary.changed_shards and not summary.decoded:
        console.say(f"nothing to do: {summary.folder} is up to date")
    splits = summary.manifest.splits.items()
    rows = [[name, split.samples, split.groups, len(split.shards)] for name, split in splits]
    console.show_table(["split", "products", "groups", "shards"], rows)
    if kinds := spread(summary.manifest, "object_type"):
        rows = [[kind, *counts.values()] for kind, counts in list(kinds.items())[:_SHOWN_TYPES]]
        columns = ["object type", *next(iter(kinds.values()))]
        console.show_table(columns, rows, title=f"the {len(rows)} commonest of {len(kinds)} object types")
    leaks = summary.manifest.leaks
    console.say(
        f"{summary.products} of {summary.rows} rows are in the splits; {leaks['groups_joined']} groups of "
        f"several products, the largest has {leaks['largest_group']}; "
        f"{leaks['left_across_splits']} near-duplicates shared between splits"
    )
    if alike := leaks["near_duplicate_groups"]:
        console.say(
            f"{alike} groups of near-duplicate images, the largest of "
            f"{leaks['largest_near_duplicate_group']} products; "
            f"{leaks['near_duplicate_groups_of_several_types']} mix object types, "
            f"{leaks['near_duplicate_groups_of_several_titles']} mix titles; "
            f"see {summary.folder / 'near_duplicates.csv'}"
        )
    for reason, count in summary.rejected.items():
        console.say(f"in no split: {count} {reason}")
    if summary.rejected:
        rest = summary.manifest.splits["rest"].samples
        console.say(f"see {summary.folder / 'rejected.csv'}; {rest} of them can still be searched for")
    if summary.rejected_images:
        counts = ", ".join(f"{count} {reason}" for reason, count in summary.rejected_images.items())
        console.say(f"images not used: {counts}; see {summary.folder / 'rejected_images.csv'}")
    if placeholders := summary.rejected.get("placeholder-image"):
        console.warn(
            f"{placeholders} products have a placeholder image, one for products that have nothing else in "
            "common; give them images of their own to train on them"
        )
    if leaks["kept_together"] > max(_LARGE_GROUP_SHARE * summary.products, 10):
        console.warn(
            f"{leaks['kept_together']} of {summary.products} products are kept together, all in one split; "
            f"most of them share {_SHARED[leaks['kept_together_by']]}"
        )
    mention_uncleaned(summary.not_cleaned)
