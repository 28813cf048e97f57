"""`furnclip clean`: the four steps, all of them at once, and where things stand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from furnclip import console
from furnclip.cli.options import CONTEXT_SETTINGS, Call, takes
from furnclip.errors import InputError

if TYPE_CHECKING:
    from furnclip.config import Config

Report = dict[str, Any]  # of `furnclip.clean`
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="only the first N rows")]
SampleOption = Annotated[
    int | None, typer.Option("--sample", min=1, help="only N rows, spread over the catalogue")
]
PartialOption = Annotated[
    bool, typer.Option("--partial", help="write what is there although rows are still pending")
]
IgnoreOption = Annotated[
    bool, typer.Option("--ignore-errors", help="continue although many rows failed for the same reason")
]

group = typer.Typer(
    context_settings=CONTEXT_SETTINGS,
    no_args_is_help=True,
    help="Clean titles and attributes with a vision model, from image and title.",
)


@group.command(epilog="Example: furnclip clean prepare --limit 20")
@takes("clean.backend", "clean.model")
def prepare(call: Call, limit: LimitOption = None, sample: SampleOption = None) -> None:
    """Turn the catalogue into request files."""
    from furnclip import clean, survey

    options = call.settings()
    with clean.open_ledger(options) as ledger:
        found = clean.prepare(ledger, limit=limit, sample=sample)

    def human() -> None:
        if found["was_done"]:
            console.say("nothing to do: the catalogue is prepared already")
        made = f"{found['requests']} requests in {found['parts']} parts"
        console.say(f"{found['rows']} rows: {made}, {found['rejected']} rejected")

    call.emit(found, human)
    if not found["requests"]:
        reasons = Counter(entry.reason for entry in ledger.workspace.read_rows())
        shown = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
        hint = f"`furnclip clean finalize` writes `{ledger.workspace.rejected}` with the reason of each row"
        hint = "; ".join(filter(None, (survey.advice(options), hint)))
        raise InputError(f"not one row can be sent ({reasons.total()} rejected: {shown})", hint=hint)


@group.command(epilog="Example: furnclip clean dispatch --max-cost-usd 5")
@takes("clean.model", "clean.max_cost_usd")
def dispatch(call: Call, ignore_errors: IgnoreOption = False) -> None:
    """Upload and start the batches."""
    from furnclip import clean

    with clean.open_ledger(call.settings()) as ledger:
        found = clean.dispatch(ledger, ignore_errors=ignore_errors)
    _emit_status(call, found)


@group.command(epilog="Example: furnclip clean monitor")
@takes("clean.model", "clean.max_cost_usd")
def monitor(call: Call) -> None:
    """Watch the batches, fetch what they give, send what waits."""
    from furnclip import clean

    with clean.open_ledger(call.settings()) as ledger:
        found = clean.monitor(ledger)
    _emit_status(call, found)


@group.command(epilog="Example: furnclip clean finalize --partial")
@takes("clean.fallback")
def finalize(call: Call, partial: PartialOption = False) -> None:
    """Write cleaned.csv and rejected.csv."""
    from furnclip import clean

    options = call.settings()
    with clean.open_ledger(options) as ledger:
        found = clean.finalize(ledger, partial=partial)
    _emit_summary(call, found, options)


@group.command(epilog="Example: furnclip clean run --backend local")
@takes("clean.backend", "clean.model", "clean.max_cost_usd", "clean.fallback")
def run(
    call: Call,
    limit: LimitOption = None,
    sample: SampleOption = None,
    partial: PartialOption = False,
    ignore_errors: IgnoreOption = False,
) -> None:
    """All four steps in order; run it again after any interruption."""
    from furnclip import clean

    options = call.settings()
    with clean.open_ledger(options) as ledger:
        found = clean.run(ledger, limit=limit, sample=sample, partial=partial, ignore_errors=ignore_errors)
    _emit_summary(call, found, options)


@group.command(epilog="Example: furnclip clean status --json")
@takes()
def status(call: Call) -> None:
    """Where things stand."""
    from furnclip import clean

    _emit_status(call, clean.status(call.settings()))


@group.command(epilog="Example: furnclip clean estimate --sample 200")
@takes("clean.backend", "clean.model")
def estimate(
    call: Call,
    limit: LimitOption = None,
    sample: SampleOption = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="send one real request to know the price better")
    ] = False,
) -> None:
    """What the run will cost, before anything is sent."""
    from furnclip import clean
    from furnclip.survey import survey

    options = call.settings()
    usable = survey(options)
    with clean.open_ledger(options) as ledger:
        found = clean.estimate(ledger, limit=limit, sample=sample, calibrated=calibrate)
    text = "nothing to send: no paid request is planned, or all of them were sent"
    if found["requests"]:
        tokens = f"{found['prompt_tokens']:,} + {found['completion_tokens']:,} tokens"
        price = f"about ${found['cost_usd']:.4f} ({_BASES[found['basis']]})"
        text = f"{found['requests']} requests: {tokens}, {price}"
    text = "\n".join(filter(None, (usable.text(), usable.advice, text)))
    payload = {**found, "catalogue": vars(usable)}
    call.emit(payload, lambda: console.say(text))
    if usable.is_hopeless:
        raise InputError(f"no row of `{options.paths.products}` can be used", hint=usable.advice)


@group.command(epilog="Example: furnclip clean cancel")
@takes()
def cancel(call: Call) -> None:
    """Stop all open batches; what they have finished is kept and billed."""
    from furnclip import clean

    with clean.open_ledger(call.settings()) as ledger:
        parts = clean.cancel(ledger)
    text = f"cancelled parts: {', '.join(map(str, parts)) or 'none was open'}"
    call.emit({"cancelled": parts}, lambda: console.say(text))


@group.command(epilog="Example: furnclip clean review --rows 8")
@takes()
def review(
    call: Call,
    rows: Annotated[int, typer.Option("--rows", min=1, max=100, help="how many rows")] = 8,
    seed: Annotated[int, typer.Option("--seed", help="another seed shows other rows")] = 0,
) -> None:
    """Show some rows side by side, raw and cleaned, with their images."""
    from furnclip import clean

    found = clean.review(call.settings(), rows=rows, seed=seed)

    def human() -> None:
        names = ("product_id", "title", "clean_title")
        table = [
            (*(row[name] for name in names), ", ".join(row["attributes"].values())) for row in found["rows"]
        ]
        console.show_table(["product", "raw title", "clean title", "style, material, color, type"], table)
        console.say(f"images in the same order: {found['sheet']}")

    call.emit(found, human)


_BASES = {
    "table": "answers guessed from the model table; `--calibrate` sends one request to know better",
    "canary": "going by the trial request",
    "results": "going by the answers so far",
}


def _emit_status(call: Call, found: Report) -> None:
    def human() -> None:
        names = ("part", "attempt", "status", "done", "requests", "batch_id")
        rows = [(*(part[name] for name in names), f"${part['cost_usd']:.4f}") for part in found["parts"]]
        console.show_table([*names[:-1], "batch", "cost"], rows)
        console.say(f"{found['rows']} rows, {found['rejected_before_sending']} rejected before sending")
        counts = {name: count for name, count in found["outcomes"].items() if count}
        answers = (f"{count} {'retried' if name == 'again' else name}" for name, count in counts.items())
        if counts:
            console.say(f"answers so far: {', '.join(answers)}")
        console.say(f"paid so far: {_bill(found)}")
        if found["halted"]:
            console.say(f"sending stopped: {found['halted']}")

    call.emit(found, human)


def _emit_summary(call: Call, found: Report, options: Config) -> None:
    """Print what was written. Raises `InputError` when no row was cleaned and none is pending."""
    from furnclip.catalogue import nothing_cleaned
    from furnclip.survey import advice

    reasons = Counter[str](found["reasons"])

    def human() -> None:
        if found["was_done"]:
            console.say("nothing to do: the files are up to date")
        rows: list[tuple[str, int]] = [(name, found[name]) for name in ("cleaned", "pending")]
        rows += [(f"rejected: {reason}", count) for reason, count in reasons.most_common()]
        console.show_table(["rows", "count"], [row for row in rows if row[1]])
        console.say(f"paid: {_bill(found)}; wrote {found['cleaned_csv']}")

    call.emit(found, human)
    if not found["cleaned"] and not found["pending"]:
        error = nothing_cleaned(Path(found["rejected_csv"]), reasons)
        error.hint = "; ".join(filter(None, (advice(options), error.hint)))
        raise error
    if reasons.total() > found["cleaned"] and (remedy := advice(options)):
        console.warn(f"most rows are rejected; {remedy}")


def _bill(found: Report) -> str:
    paid = f"${found['paid_usd']:.4f}"
    lost = f", and perhaps ${found['unconfirmed_usd']:.6f} for a trial request whose reply was lost"
    return paid + lost if found["unconfirmed_usd"] else paid
