"""`/arena`: blind judging in a browser. The contest itself is another room's and is handed in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Protocol
from urllib.parse import urlencode

from pydantic import Field
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from furnclip.errors import FurnclipError
from furnclip.search.service import asking
from furnclip.search.service.app import Service
from furnclip.search.service.guard import status_of
from furnclip.search.service.page import Pages

# Key, what its button says, and what it means.
KEYS = (
    ("A", "A is better", "row A answers the query better"),
    ("B", "B is better", "row B answers the query better"),
    ("T", "Tie", "both rows are equally good"),
    ("X", "Both bad", "both rows are bad"),
    ("N", "Skip", "you cannot or do not want to judge this one"),
    ("U", "Undo", "take your last vote back and judge it again"),
    ("Q", "Quit", "stop; your votes are kept"),
)


class Contest(Protocol):
    """Blind judging by several raters."""

    def ballot(self, rater: str) -> Mapping[str, Any]:
        """What a rater is asked now."""

    def press(self, rater: str, key: str, ballot: str) -> None:
        """One of `KEYS`, pressed while that ballot was shown."""

    def image(self, name: str) -> bytes:
        """The JPEG of an image on a ballot."""

    def close(self) -> None:
        """End every rater's session."""


class RaterParams(asking.Params):
    """Who judges."""

    rater: Annotated[str, Field(max_length=100)] = ""
    over: bool = False


class KeyParams(RaterParams):
    """A key that was pressed."""

    key: Annotated[str, Field(pattern="^[ABTXNUQ]$")]
    ballot: Annotated[str, Field(max_length=64)] = ""


def contest_routes(service: Service, pages: Pages, contest: Contest) -> list[BaseRoute]:
    """The addresses for raters."""

    async def arena(request: Request) -> Response:
        shown: dict[str, Any] = {"rater": "", "over": False, "ballot": None, "error": None, "keys": KEYS}
        try:
            params = asking.read(request.query_params, RaterParams, service.limits)
            shown |= {"rater": " ".join(params.rater.split()), "over": params.over}
            if shown["rater"] and not params.over:
                shown["ballot"] = await service.work(contest.ballot, shown["rater"])
            return pages.answer("arena.html", **shown)
        except FurnclipError as error:
            return pages.answer("arena.html", status=status_of(error), **{**shown, "error": error})

    async def press(request: Request) -> Response:
        params = asking.read(await request.form(max_files=0, max_fields=10), KeyParams, service.limits)
        rater = " ".join(params.rater.split())
        await service.work(contest.press, rater, params.key, params.ballot)
        over = {"over": "true"} if params.key == "Q" else {}
        return RedirectResponse(f"/arena?{urlencode({'rater': rater, **over})}", 303)

    async def arena_image(request: Request) -> Response:
        return await service.image(request, contest.image, "name")

    return [
        Route("/arena", arena, methods=["GET"]),
        Route("/arena", press, methods=["POST"]),
        Route("/arena/images/{name}", arena_image, methods=["GET"]),
    ]
