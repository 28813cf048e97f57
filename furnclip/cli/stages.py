"""`furnclip fetch`, `prepare` and `train`: images from the web, shards without leaks, a model; and `update`.

Each stage of `update` is a process of its own, so that the memory of one is free for the next; what they
say, and their results, are appended to `work/update.log`.
"""

from __future__ import annotations

import json
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import furnclip
from furnclip import console
from furnclip.cli.imports import quick_imports
from furnclip.cli.options import (
    Call,
    check_address_space,
    check_cleaned,
    mention_raw_titles,
    mention_uncleaned,
    takes,
)
from furnclip.errors import FurnclipError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from furnclip.config import Config
    from furnclip.fetch import FetchSummary
    from furnclip.prepare import CheckReport, PrepareSummary
    from furnclip.survey import Survey

_LARGE_GROUP_SHARE = 0.1
_SHOWN_TYPES = 8
_LONG_BYTES = 50_000  # of a catalogue; some 500 rows
_LEAST_LEFT = 0.5  # of the products in search, after a night
_SHARED = {
    "title": "their title: set `paths.group_column` to the column that tells variants apart",
    "group": "their group: check `paths.group_column`",
    "image": "one image: if it stands for a missing one, take it out of these rows",
    "near-duplicates": "images that look alike: check a few of them",
}

_Run = Annotated[  # torchrun takes `--run` for its own `--run-path`, hence the second spelling
    str, typer.Option("--run", "--run-name", help="name of the run; default: the scenario")
]
_Resume = Annotated[bool, typer.Option(help="continue a run of that name; off: start it again")]


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
    call.emit(vars(summary), lambda: _show_fetched(summary))
    if summary.failed:
        console.warn(
            f"{sum(summary.failed.values()):,} images could not be fetched; `{summary.failed_csv}` has the "
            "reason of each, and the same command tries them again"
        )


def _show_fetched(summary: FetchSummary) -> None:
    if summary.kept == summary.addresses:
        nothing = "nothing to fetch: the catalogue names no web address; images are read from"
        done = f"nothing to do: all {summary.kept:,} images are in"
        console.say(f"{done if summary.addresses else nothing} {summary.images}")
        return
    counts = ("fetched", "changed", "unchanged", "kept")
    rows = [[name, getattr(summary, name)] for name in counts if getattr(summary, name)]
    rows += [[f"failed: {reason}", count] for reason, count in summary.failed.items()]
    console.show_table(["", "images"], rows)
    console.say(f"{summary.fetched_bytes / 1e6:,.1f} MB fetched into {summary.images}")


def _decodes_many(options: Config, *, anew: bool) -> bool:
    """Whether a run will decode more images here than one process does while others are started."""
    from furnclip.parallel import cores

    settings, path = options.prepare, options.paths.products
    is_first = anew or not any(options.paths.cache.glob("prepare/samples-*"))
    is_long = path.is_file() and path.stat().st_size > _LONG_BYTES
    return is_first and is_long and settings.engine == "local" and (settings.workers or cores()) > 1


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
    options = call.settings()
    if _decodes_many(options, anew=fresh or rebuild or check):
        from furnclip.parallel import preload

        preload("furnclip.prepare.scan")
    with quick_imports("pyarrow"):
        from furnclip.errors import InputError
        from furnclip.prepare import prepare as prepare_shards

    if options.paths.cleaned.is_file() or not check:
        try:
            check_cleaned(options)
        except InputError as error:
            from furnclip.survey import advice

            error.hint = "; ".join(filter(None, (advice(options), error.hint)))
            raise
    if check:
        return _check(call, options)
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


@takes(
    *("train.scenario", "model.name", "train.epochs", "train.lr", "train.effective_batch_size"),
    *("train.micro_batch_size", "train.lora_r", "train.lora_alpha", "train.lora_dropout", "train.loss"),
    *("train.augment", "train.teacher", "model.precision", "train.seed", "train.patience"),
    *("train.mini_train", "train.gradient_checkpointing", "train.upload", "train.wandb"),
    *("storage.bucket", "storage.prefix"),
)
def train(call: Call, run: _Run = "", resume: _Resume = True) -> None:
    """Fine-tune CLIP on the shards.

    [bold]zero_shot[/bold]: nothing trains, the base is measured\n
    [bold]linear_probe[/bold]: both projections; the towers run once\n
    [bold]dual_lora[/bold]: LoRA in both encoders, and both projections\n
    [bold]vision_lora[/bold]: LoRA in the vision encoder, and both projections\n
    [bold]text_lora[/bold]: LoRA in the text encoder, and both projections\n
    [bold]full[/bold]: every weight\n
    [bold]auto[/bold], the default: full for a base of up to 20 million parameters, else dual_lora\n
    [bold]all[/bold]: all but full, one after another, and a table
    """
    for section, key in (("model", "name"), ("train", "teacher")):
        given = call.flags.get(section, {})
        if (folder := Path(given.get(key, ""))).is_dir() and folder.name:
            given[key] = str(folder.resolve())  # findable when the command is repeated from elsewhere
    checked = call.settings()
    check_address_space()
    from furnclip.train import train as train_run
    from furnclip.train import train_all

    if checked.train.scenario == "all":
        result = train_all(checked, prefix=run, resume=resume)
        call.emit(result, lambda: _show_ablation(result))
    elif card := train_run(checked, run=run, resume=resume):  # none of a process that does not talk
        call.emit(card, lambda: _show_run(card))


def _show_run(card: Mapping[str, Any]) -> None:
    if card["already_done"]:
        console.say(f"run `{card['run']}` is finished already; nothing to do")
    base, tuned = card["validation"]["base"], card["validation"]["finetuned"]
    rows = [(name.replace("_", " "), base[name], tuned[name]) for name in base]
    console.show_table(
        ("validation", "base", "finetuned"),
        rows,
        title=f"{card['run']}: {card['samples']['validation']} products, each searched among all of them",
    )
    console.say(f"next: `furnclip eval --run {card['run']}`, then `furnclip embed`")
    if card["verdict"]:
        console.say(f"{card['run']}: {card['verdict']}")


def _show_ablation(result: Mapping[str, Any]) -> None:
    if result["already_done"]:
        console.say("every scenario is finished already; nothing to do")
    rows = [
        (
            row["scenario"],
            f"{row['trainable_parameters']:,}",
            f"{row['seconds']:.0f} s",
            _with_interval(row["recall@1"]),
            _with_interval(row["recall@5"]),
            f"{row['latency_ms']['image']:.1f} / {row['latency_ms']['text']:.1f} ms",
        )
        for row in result["ablation"]
    ]
    columns = ("scenario", "trainable", "time", "recall@1", "recall@5", "image / text")
    console.show_table(columns, rows, title="text to image on the validation split, 95 % intervals")
    for row in result["ablation"]:
        if row["verdict"]:
            console.say(f"{row['run']}: {row['verdict']}")


def _with_interval(values: list[float]) -> str:
    value, low, high = values
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


@takes()
def update(call: Call) -> None:
    """Bring search up to date with the catalogue: fetch, clean, prepare and embed what changed."""
    from furnclip.journal import exclusive

    chosen = call.settings()
    log = chosen.paths.work / "update.log"
    results: dict[str, Any] = {}
    start = time.monotonic()
    with exclusive(log):  # cron starts the next one even where this one is still at work
        for words in _stages(chosen):
            console.note(f"furnclip {' '.join(words)}")
            results[words[0]] = _run(words, call.config, log)
            if words == ("prepare",):
                _check_shrinking(chosen, results["prepare"]["splits"])
    payload = {"seconds": round(time.monotonic() - start, 1), "log": str(log), "results": results}
    told = f"{results['embed']['products']:,} products can be searched, {payload['seconds']} s"
    call.emit(payload, lambda: console.say(f"{told}\nwhat was done: {log}"))


def _stages(config: Config) -> list[tuple[str, ...]]:
    """The commands in order; titles are cleaned where that was begun, because it may cost money."""
    from furnclip.clean.workspace import Workspace

    if Workspace(config.paths.clean).journal.exists():
        return [("fetch",), ("clean", "run"), ("prepare",), ("embed",)]
    console.note("titles stay as they are: `furnclip clean run` was never started here")
    return [("fetch",), ("prepare",), ("embed",)]


def _check_shrinking(config: Config, splits: dict[str, dict[str, int]]) -> None:
    """Raise where a night takes most products out of search: an export was cut, a column renamed."""
    from furnclip.vectors.parquet import VectorFile

    before, left = 0, sum(split["samples"] for name, split in splits.items() if name != "mini_train")
    with suppress(FurnclipError):
        before = VectorFile(config.paths.vectors).rows
    if left < before * _LEAST_LEFT:
        raise FurnclipError(
            f"of {before:,} products in search the catalogue has {left:,} left; search stays as it is",
            hint="fix the export and run `furnclip update` again; where it is right, run `furnclip embed`",
        )


def _run(words: tuple[str, ...], config: Path | None, log: Path) -> Any:
    """The JSON result of a command, whose messages go to the log."""
    from furnclip.parallel import run_furnclip

    options = ["--json", *(["--config", str(config)] if config else [])]
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} furnclip {' '.join(words)}\n")
        file.flush()
        start = file.tell()
        code, output = run_furnclip([*words, *options], stdout=subprocess.PIPE, stderr=file)
        file.write(f"{output.strip()}\nexit code {code}\n")
    if code:
        told = log.read_bytes()[start:].decode(errors="replace").splitlines()
        said = {word: text for word, _, text in (line.partition(": ") for line in told)}
        ended = f"`furnclip {' '.join(words)}` ended with exit code {code}"
        raise FurnclipError(
            f"{ended}: {said['error']}" if "error" in said else ended,
            hint=f"{said.get('hint', 'run the same command again')}; all messages: `{log}`",
        )
    return json.loads(output)
