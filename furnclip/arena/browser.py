"""The same contest for raters in a browser: what a page may know of a trial, and what its keys do.

A ballot has titles, and names of images that are the same whichever model showed them. Votes go through
`ArenaApp`, which holds the rater's lock until the rater quits or has been idle for some time.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Sequence
from typing import Any

from furnclip.arena.app import ArenaApp, Trial
from furnclip.arena.lineup import Card, make_lineup
from furnclip.arena.sheet import thumbnail
from furnclip.config import Config
from furnclip.errors import InputError, UsageError
from furnclip.images import encode_jpeg

_SIDE_PX = 320
_QUALITY = 88
_IDLE_S = 600.0


class BrowserContest:
    """Every rater's voting on one contest; safe to share between threads."""

    def __init__(self, config: Config, *, runs: Sequence[str] = (), model: str | None = None) -> None:
        self._config, self._runs, self._model = config, runs, model
        self._salt = secrets.token_hex()  # names of images and ballots say nothing, and end with the process
        self._images: dict[str, str] = {}
        self._sessions: dict[str, tuple[ArenaApp, float]] = {}
        self._asked: dict[str, str] = {}  # rater -> the ballot whose clock runs
        self._lock = threading.Lock()
        make_lineup(config, runs, model=model).require_difference()

    def ballot(self, rater: str) -> dict[str, Any]:
        """What is to be judged now; `rows` is empty where everything has been."""
        with self._lock:
            app = self._session(rater)
            shown: dict[str, Any] = {"rater": app.rater, "votes": app.votes_cast, "left": app.judging.left}
            if (trial := app.trial) is None:
                return {**shown, "rows": (), "ballot": ""}
            ballot = self._ballot(app, trial)
            if self._asked.get(rater) != ballot:
                app.question()
                self._asked[rater] = ballot
            asked = trial.query
            query = {"text": asked.text, "image": self._name(asked.image), "kind": asked.kind}
            rows = [[self._card(card) for card in row] for row in trial.results]
            return {**shown, "rows": rows, "query": query, "ballot": ballot}

    def press(self, rater: str, key: str, ballot: str) -> None:
        """A key: a vote, U or Q. A vote for another ballot than that shown now came twice and is dropped."""
        with self._lock:
            if key == "Q":
                self._close(rater)
                return
            app = self._session(rater)
            if key == "U":
                app.undo()
            elif app.trial is None or ballot == self._ballot(app, app.trial):
                app.vote(key)

    def image(self, name: str) -> bytes:
        """The JPEG of an image that a ballot has shown. Raises `InputError` for any other name."""
        if name not in self._images:
            raise InputError("there is no such image", hint="it stands on no ballot")
        return encode_jpeg(thumbnail(self._images[name], _SIDE_PX), _QUALITY)

    def close(self) -> None:
        """Let every rater vote elsewhere."""
        with self._lock:
            for rater in list(self._sessions):
                self._close(rater)

    def _session(self, rater: str) -> ArenaApp:
        now = time.monotonic()
        for name, (_, used) in list(self._sessions.items()):
            if now - used > _IDLE_S and name != rater:
                self._close(name)
        if not rater.strip():  # which elsewhere means whoever started this
            raise UsageError("a rater needs a name", hint="type it where the contest begins")
        if rater not in self._sessions:
            app = ArenaApp(self._config, rater=rater, runs=self._runs, model=self._model)
        else:
            app, _ = self._sessions[rater]
        self._sessions[rater] = app, now
        return app

    def _close(self, rater: str) -> None:
        if session := self._sessions.pop(rater, None):
            session[0].close()
            self._asked.pop(rater, None)

    def _ballot(self, app: ArenaApp, trial: Trial) -> str:
        return self._hash(app.rater, trial.query.query_id, *trial.duel, str(trial.repeat))

    def _card(self, card: Card) -> dict[str, str]:
        return {"title": card.title, "detail": card.detail, "image": self._name(card.image)}

    def _name(self, image: str) -> str:
        if not image:
            return ""
        name = self._hash(image)
        self._images[name] = image
        return name

    def _hash(self, *words: str) -> str:
        return hashlib.sha256("\0".join((self._salt, *words)).encode()).hexdigest()[:24]
