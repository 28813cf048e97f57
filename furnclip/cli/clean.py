"""`furnclip clean`: the four steps, all of them at once, and where things stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from furnclip.cli.options import CONTEXT_SETTINGS, ConfigOption, FurnclipGroup, JsonOption, settings

if TYPE_CHECKING:
    from furnclip.clean import Prepared, Summary
    from furnclip.config import Config

BackendOption = Annotated[
    str | None, typer.Option("--backend", help="`openai`, `live` or `local` (free offline rules)")
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="only the first N rows")]
SampleOption = Annotated[
    int | None, typer.Option("--sample", min=1, help="only N rows, spread over the catalogue")
]
PartialOption = Annotated[
    bool, typer.Option("--partial", help="write what is there although rows are still pending")
]
FallbackOption = Annotated[
    str | None, typer.Option("--fallback", help="`local`: offline rules for rows that were rejected")
]


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        cls=FurnclipGroup,
        context_settings=CONTEXT_SETTINGS,
        no_args_is_help=True,
        help="Clean titles and attributes with a vision model, from picture and title.",
        epilog="Example: furnclip clean run --backend local",
    )
    group.command("prepare", epilog="Example: furnclip clean prepare --limit 20")(prepare)
    group.command("finalize", epilog="Example: furnclip clean finalize --partial")(finalize)
    group.command("run", epilog="Example: furnclip clean run --backend local")(run)
    app.add_typer(group, name="clean")


def prepare(
    config: ConfigOption = None,
    backend: BackendOption = None,
    limit: LimitOption = None,
    sample: SampleOption = None,
    as_json: JsonOption = False,
) -> None:
    """Turn the catalogue into request files."""
    from furnclip import clean, console

    with clean.open_ledger(_settings(config, backend=backend)) as ledger:
        prepared = clean.prepare(ledger, clean.Selection(limit or 0, sample or 0))
    console.emit(_prepared_facts(prepared), as_json=as_json, human=lambda: _say_prepared(prepared))


def finalize(
    config: ConfigOption = None,
    backend: BackendOption = None,
    fallback: FallbackOption = None,
    partial: PartialOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write cleaned.csv and rejected.csv."""
    from furnclip import clean, console

    found = _settings(config, backend=backend, fallback=fallback)
    with clean.open_ledger(found) as ledger:
        summary = clean.finalize(ledger, partial=partial)
    facts = _summary_facts(summary, found)
    console.emit(facts, as_json=as_json, human=lambda: _say_summary(summary, found))


def run(
    config: ConfigOption = None,
    backend: BackendOption = None,
    fallback: FallbackOption = None,
    limit: LimitOption = None,
    sample: SampleOption = None,
    partial: PartialOption = False,
    as_json: JsonOption = False,
) -> None:
    """All steps in order; run it again after any interruption."""
    from furnclip import clean, console

    found = _settings(config, backend=backend, fallback=fallback)
    with clean.open_ledger(found) as ledger:
        clean.prepare(ledger, clean.Selection(limit or 0, sample or 0))
        summary = clean.finalize(ledger, partial=partial)
    facts = _summary_facts(summary, found)
    console.emit(facts, as_json=as_json, human=lambda: _say_summary(summary, found))


def _settings(config: Any, **flags: Any) -> Config:
    return settings(config, clean=flags)


def _prepared_facts(prepared: Prepared) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(prepared)


def _say_prepared(prepared: Prepared) -> None:
    from furnclip import console

    if prepared.was_done:
        console.say("nothing to do: the catalogue is prepared already")
    console.say(f"{prepared.rows} rows: {prepared.requests} requests, {prepared.rejected} rejected")


def _summary_facts(summary: Summary, config: Config) -> dict[str, Any]:
    from dataclasses import asdict

    files = {
        "cleaned_csv": str(config.paths.cleaned),
        "rejected_csv": str(config.paths.clean / "rejected.csv"),
    }
    return {**asdict(summary), "reasons": dict(summary.reasons), **files}


def _say_summary(summary: Summary, config: Config) -> None:
    from furnclip import console

    if summary.was_done:
        console.say("nothing to do: the files are up to date")
    rows = [("cleaned", summary.cleaned), ("pending", summary.pending)]
    rows += [(f"rejected: {reason}", count) for reason, count in summary.reasons.most_common()]
    console.show_table(["rows", "count"], [row for row in rows if row[1]])
    console.say(f"wrote {config.paths.cleaned}")
