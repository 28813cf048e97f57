"""What a part gave, noted in the journal: outcomes counted, tokens billed, sending stopped where it must.

In: the outcomes of one part. Out: `merged` and, when too many rows failed alike, `halted`.
"""

from __future__ import annotations

from collections import Counter

from furnclip.clean import estimate
from furnclip.clean.answers import Outcome, part_outcomes
from furnclip.clean.ledger import Ledger
from furnclip.clean.models import VisionModel, find_model
from furnclip.clean.prompt import Vocabulary
from furnclip.clean.state import UNSENT, Part, Usage
from furnclip.config import CleaningConfig

SAME_ERROR_SHARE = 0.2
SAME_ERROR_ROWS = 10


def model_of(part: Part, clean: CleaningConfig) -> VisionModel:
    """The model that a part was made for, which the settings may have left since."""
    return find_model(clean.model_copy(update={"model": part.source.partition(":")[2], "effort": ""}))


def record_merged(ledger: Ledger, part: Part, outcomes: dict[str, Outcome], usage: Usage) -> None:
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


def merge_live(ledger: Ledger, part: Part) -> None:
    """Note the answers of a live part, all of them or, after an interruption, those that came."""
    outcomes = part_outcomes(ledger.workspace, part, Vocabulary.from_config(ledger.config.clean))
    model = model_of(part, ledger.config.clean)
    record_merged(ledger, part, outcomes, estimate.usage(billed_tokens(outcomes), model, batch=False))


def keep_live_answers(ledger: Ledger) -> None:
    """Merge live parts that were interrupted, before other settings drop what was not sent."""
    for part in ledger.state.with_status(*UNSENT):
        if part.backend == "live" and ledger.workspace.live(part.number).is_file():
            merge_live(ledger, part)
