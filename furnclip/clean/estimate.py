"""What a run will cost, before anything is sent.

In: the indexes of the parts, and what the first real answers told. Out: tokens and US dollars. A picture
counts by the patch rule; text by its length, until the canary (one real request, sent before the first
batch) says what prompt and schema really take. Answers are guessed from the model table first, then from
the canary, then from the parts that came back; with hidden reasoning they are the larger half of the
bill and the less certain one.
"""

from __future__ import annotations

from dataclasses import dataclass

from furnclip.clean.models import VisionModel
from furnclip.clean.requests import Recipe
from furnclip.clean.state import Part, State, Usage


@dataclass(frozen=True)
class Calibration:
    """Tokens that every request takes besides its picture and title, and how sure we are."""

    overhead_tokens: float
    answer_tokens: float
    basis: str  # "table", "canary" or "results"


@dataclass(frozen=True)
class Estimate:
    """Expected tokens and price of some requests."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    basis: str


def calibrate(state: State, recipe: Recipe) -> Calibration:
    """The best knowledge so far."""
    canary = state.canaries.get(recipe.identity)
    overhead, answer, basis = float(recipe.overhead_tokens), float(recipe.model.answer_tokens), "table"
    if canary:
        overhead, answer = canary["overhead_tokens"], canary["completion_tokens"]
        basis = "canary"
    seen = [part for part in state.with_status("merged") if part.identity == recipe.identity]
    billed = [part for part in seen if part.usage.prompt_tokens and _answered(part)]
    answered = sum(_answered(part) for part in billed)
    if answered:
        prompt_tokens = sum(part.usage.prompt_tokens for part in billed)
        pictures = sum(part.tokens * _answered(part) / part.requests for part in billed)
        overhead = (prompt_tokens - pictures) / answered
        answer = sum(part.usage.completion_tokens for part in billed) / answered
        basis = "results"
    return Calibration(max(0.0, overhead), answer, basis)


def _answered(part: Part) -> int:
    """Requests that the service ran, and billed."""
    total, completed, _ = part.counts
    return completed if total else part.requests


def prompt_tokens(part: Part, calibration: Calibration) -> int:
    return round(part.tokens + part.requests * calibration.overhead_tokens)


def estimate(parts: list[Part], state: State, recipe: Recipe, *, batch: bool) -> Estimate:
    """What these parts will take together."""
    calibration = calibrate(state, recipe)
    requests = sum(part.requests for part in parts)
    prompt = sum(prompt_tokens(part, calibration) for part in parts)
    completion = round(requests * calibration.answer_tokens)
    cost_usd = recipe.model.cost_usd(prompt, completion, batch=batch)
    return Estimate(requests, prompt, completion, cost_usd, calibration.basis)


def committed_usd(state: State, recipe: Recipe, *, batch: bool) -> float:
    """Paid, surely or perhaps, plus what open batches will probably cost."""
    running = state.with_status("creating", "open", "ended", "downloaded")
    mine = [part for part in running if part.backend != "local"]
    paid_usd = state.paid.cost_usd + state.unconfirmed_usd
    return paid_usd + estimate(mine, state, recipe, batch=batch).cost_usd


def usage(tokens: tuple[int, int], model: VisionModel, *, batch: bool) -> Usage:
    """Billed (prompt, completion) tokens with their price."""
    prompt, completion = tokens
    return Usage(prompt, completion, model.cost_usd(prompt, completion, batch=batch))
