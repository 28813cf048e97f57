"""What a part gave, noted in the journal: outcomes counted, tokens billed, sending stopped where it must.

In: the outcomes of one part. Out: `merged` and, when too many rows failed alike, `halted`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from furnclip.clean import estimate
from furnclip.clean.answers import Outcome, is_reply_lost, part_outcomes, read_lines, usage_of_line
from furnclip.clean.ledger import Ledger
from furnclip.clean.models import VisionModel, find_model
from furnclip.clean.prompt import Vocabulary
from furnclip.clean.state import UNSENT, Part, Usage
from furnclip.clean.workspace import file_digest
from furnclip.config import CleaningConfig

SAME_ERROR_SHARE = 0.2
SAME_ERROR_ROWS = 10


def model_of(part: Part, clean: CleaningConfig) -> VisionModel:
    """The model that a part was made for, which the settings may have left since."""
    return find_model(clean.model_copy(update={"model": part.source.partition(":")[2], "effort": ""}))


def record_merged(
    ledger: Ledger, part: Part, outcomes: dict[str, Outcome], usage: Usage, **more: object
) -> None:
    """Note what a part gave; stop sending when too many of its rows failed alike."""
    kinds = Counter(outcome.kind for outcome in outcomes.values())
    ledger.record(
        "merged",
        part=part.number,
        cleaned=kinds["cleaned"],
        rejected=kinds["rejected"],
        again=kinds["again"],
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cost_usd=usage.cost_usd,
        **more,
    )
    halt_on_same_error(ledger, part, outcomes)


def billed_tokens(outcomes: dict[str, Outcome]) -> tuple[int, int]:
    """(prompt, completion) tokens of all answered requests."""
    prompt = sum(outcome.prompt_tokens for outcome in outcomes.values())
    return prompt, sum(outcome.completion_tokens for outcome in outcomes.values())


def halt_on_same_error(ledger: Ledger, part: Part, outcomes: dict[str, Outcome]) -> None:
    """Many rows refused for one reason: the next part would fare no better."""
    refused = Counter(
        outcome.detail.split(":")[0] for outcome in outcomes.values() if outcome.reason == "request-refused"
    )
    for detail, count in refused.most_common(1):
        if count >= SAME_ERROR_ROWS and count > SAME_ERROR_SHARE * part.requests:
            reason = f"{count} of {part.requests} requests of part {part.number} were refused ({detail})"
            ledger.record("halted", reason=reason)


def live_bill(path: Path, model: VisionModel) -> tuple[Usage, float]:
    """What the requests in a file of live answers cost, and what those cost perhaps whose reply was lost."""
    usage, lost_usd = Usage(), 0.0
    asked: dict[str, float] = {}  # sent, with their expected price
    for line in read_lines(path):
        custom_id = str(line.get("custom_id"))
        before_usd = asked.pop(custom_id, 0.0)
        if "asked_usd" in line:
            asked_usd = line["asked_usd"] if isinstance(line["asked_usd"], float) else 0.0
            if asked_usd:  # 0: it turned out not to have been sent
                asked[custom_id] = asked_usd
                lost_usd += before_usd
        elif is_reply_lost(line):
            lost_usd += before_usd
        else:
            usage += estimate.usage(usage_of_line(line), model, batch=False)
    return usage, lost_usd + sum(asked.values())


def merge_live(ledger: Ledger, part: Part) -> None:
    """Note the answers of a live part, all of them or, after an interruption, those that came."""
    outcomes = part_outcomes(ledger.workspace, part, Vocabulary.from_config(ledger.config.clean))
    path = ledger.workspace.live(part.number)
    usage, unconfirmed_usd = live_bill(path, model_of(part, ledger.config.clean))
    results = {path.name: file_digest(path)}
    record_merged(ledger, part, outcomes, usage, unconfirmed_usd=unconfirmed_usd, results=results)


def keep_live_answers(ledger: Ledger) -> None:
    """Merge live parts that were interrupted, before other settings drop what was not sent."""
    for part in ledger.state.with_status(*UNSENT):
        if part.backend == "live" and ledger.workspace.live(part.number).is_file():
            merge_live(ledger, part)
