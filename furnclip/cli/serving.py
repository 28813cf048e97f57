"""`furnclip serve`: the search as a service and a page, until it is told to stop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from furnclip import console
from furnclip.cli.imports import quick_imports
from furnclip.cli.options import (
    Call,
    VectorsOfModel,
    VectorsOfRun,
    check_address_space,
    takes,
)
from furnclip.errors import InputError, UsageError

_PACKAGES = {"anyio", "prometheus_client", "setproctitle", "starlette", "uvicorn"}


@takes("serve.host", "serve.port", "serve.query_log")
def serve(
    call: Call,
    token: Annotated[
        str, typer.Option("--token", help="whoever asks has to give it; needed for any other `--host`")
    ] = "",
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="file that the token is read from", resolve_path=True)
    ] = None,
    arena: Annotated[bool, typer.Option("--arena", help="let raters judge blind at /arena")] = False,
    run: VectorsOfRun = None,
    model: VectorsOfModel = None,
) -> None:
    """Serve the search as a REST service and a web page."""
    console.hide(token)
    check_address_space()
    try:
        with quick_imports():
            from setproctitle import setproctitle

            from furnclip.search.service import serve as serve_search
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        hint = "install them with `pip install 'furnclip[serve]'`"
        raise UsageError(f"`{error.name}` is not installed, which serving needs", hint=hint) from None
    setproctitle("furnclip serve")  # without the token, which every user of this machine could read
    if token_file:
        token = _read_token(token_file)
    chosen = call.settings()

    def started(address: str) -> None:
        payload = {"address": address}
        call.emit(payload, lambda: console.say(f"serving at {address} (Ctrl-C stops)"))
        console.flush()

    contest = None
    if arena:
        from furnclip.arena import BrowserContest

        contest = BrowserContest(chosen, runs=[run] if run else (), model=model)
    serve_search(chosen, run=run, model=model, token=token, contest=contest, started=started)


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        raise InputError(
            f"the token file `{path}` cannot be read", hint="check the path and its owner"
        ) from None
    if not token:
        raise InputError(f"the token file `{path}` is empty", hint="write the token into it")
    console.hide(token)
    return token
