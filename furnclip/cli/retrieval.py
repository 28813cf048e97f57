"""`furnclip eval`, `embed`, `export`, `search` and `serve`: measure, encode, hand on, search."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from furnclip import console
from furnclip.cli.imports import quick_imports
from furnclip.cli.options import (
    Call,
    VectorsOfModel,
    VectorsOfRun,
    check_address_space,
    check_cleaned,
    mention_raw_titles,
    takes,
)
from furnclip.errors import InputError, UsageError

if TYPE_CHECKING:
    from furnclip.search import Answer, Hit, Searcher

_SERVING = {"anyio", "prometheus_client", "setproctitle", "starlette", "uvicorn"}
_COUNTS = ("products", "missing", "encoded", "row_groups", "row_groups_encoded", "row_groups_begun")


@takes("model.name", "eval.split", "eval.queries")
def evaluate(
    call: Call,
    run: Annotated[
        list[str] | None, typer.Option("--run", help="run to measure, repeatable; without it the latest")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="measure again although nothing changed")] = False,
) -> None:
    """Compare models: recall, intervals, tests, images; writes report.html and report.json."""
    check_address_space()
    from furnclip.evaluate import comparison_lines, summary_table
    from furnclip.evaluate import evaluate as run_evaluation

    result = run_evaluation(call.settings(), run or (), force=force)
    if result.was_there:
        console.note(
            "nothing to do: the same models, data and settings were measured before (`--force` repeats it)"
        )
    report = result.report
    payload = {**report, "report": str(result.html_path)}

    def show() -> None:
        columns, rows = summary_table(report)
        title = f"text to image, {report['queries']} queries, gallery of {report['gallery_size']}"
        console.show_table(columns, rows, title=title)
        for line in comparison_lines(report):
            console.say(line, wrap=True)
        console.say(f"report: {result.html_path}")

    call.emit(payload, show)


@takes("model.name", "embed.batch_size", "embed.dtype", "embed.engine")
def embed(
    call: Call,
    run: Annotated[
        str | None, typer.Option("--run", help="fine-tuned run; default: the latest finished one")
    ] = None,
) -> None:
    """Encode every product once and build the search table; only what changed is encoded again."""
    check_address_space()
    with quick_imports():
        from furnclip.embed import embed_catalogue

    chosen = call.settings()
    check_cleaned(chosen)
    summary = embed_catalogue(chosen, run=run)
    if summary.index is None:
        return  # under torchrun, only process 0 prints the summary
    mention_raw_titles(chosen)
    if summary.was_there:
        console.note("nothing to do: every product is embedded by these models already")
    payload = {
        "vectors": str(summary.vectors),
        "index": summary.index.uri,
        "search": "exact" if summary.index.exact else "ivf",
        **{name: getattr(summary, name) for name in _COUNTS},
        "seconds": round(summary.seconds, 3),
        "up_to_date": summary.was_there,
        "models": {label: model.model_dump() for label, model in summary.provenance.models.items()},
    }

    def show() -> None:
        rows = [
            (label, model.name, model.precision, summary.encoded.get(label, 0), model.image_weight)
            for label, model in summary.provenance.models.items()
        ]
        title = f"{summary.products} products in {summary.seconds:.1f} s"
        console.show_table(("vectors", "model", "precision", "encoded", "image weight"), rows, title=title)
        for reason, count in sorted(summary.missing.items()):
            console.say(f"found by its text alone: {count} ({reason}), see {summary.missing_file}")
        console.say(f"vectors: {summary.vectors}")
        console.say('next: furnclip search "a red armchair"')

    call.emit(payload, show)


@takes()
def export(
    call: Call,
    onnx: Annotated[
        Path,
        typer.Option("--onnx", help="folder for the ONNX files; replaced if it is one", resolve_path=True),
    ],
    int8: Annotated[bool, typer.Option("--int8", help="also write both encoders in 8 bits")] = False,
    run: Annotated[
        str | None,
        typer.Option("--run", help="fine-tuned run; default: the latest finished one, else the base"),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="base model instead of a run")] = None,
) -> None:
    """Write both encoders as ONNX, checked against torch, with all that other programs need."""
    if run and model:
        raise UsageError("`--run` and `--model` ask for two models", hint="give one of them")
    check_address_space()
    from furnclip.model.export import export_onnx

    encoder, was_there = export_onnx(onnx, call.settings(), name=run or model, int8=int8)
    about = encoder.about
    if was_there:
        console.note("nothing to do: these files were written from this model already")
    told = {name: getattr(about, name) for name in ("fingerprint", "dimension", "cosines")}
    payload = {"folder": str(onnx), "model": about.name, **told, "up_to_date": was_there}

    def show() -> None:
        sizes = {file: about.files[file] + about.files[f"{file}.data"] for file in about.cosines}
        rows = [(file, sizes[file] / 1e6, f"{cosine:.6f}") for file, cosine in about.cosines.items()]
        console.show_table(("file", "MB", "lowest cosine to torch"), rows, title=f"`{about.name}` as ONNX")
        console.say(f"how to use them: {onnx / 'README.md'}")

    call.emit(payload, show)


_Where = Annotated[
    str | None, typer.Option("--where", help="SQL filter, e.g. \"color = 'brown' AND style <> ''\"")
]
_Not = Annotated[list[str] | None, typer.Option("--not", help="word that hits must not have, repeatable")]
_Sort = Annotated[
    str | None, typer.Option("--sort", help="order by this column; `-price`: the largest first")
]
_Facets = Annotated[
    str | None, typer.Option("--facets", help="count the values of these columns, e.g. color,material")
]
_Literal = Annotated[
    bool, typer.Option("--literal", help='take "under 100" or "not red" as words, not as filters')
]
_AllVariants = Annotated[
    bool, typer.Option("--all-variants", help="show every product of a group, not the best one")
]


@takes("search.k", "search.mode", "search.image_weight")
def search(
    call: Call,
    text: Annotated[str | None, typer.Argument(help="what to look for")] = None,
    image: Annotated[
        Path | None, typer.Option("--image", help="look for products like this image", resolve_path=True)
    ] = None,
    where: _Where = None,
    exclude: _Not = None,
    sort: _Sort = None,
    facets: _Facets = None,
    literal: _Literal = False,
    all_variants: _AllVariants = False,
    preview: Annotated[bool, typer.Option("--preview", help="draw the hits as a contact sheet")] = False,
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="ask again and again; the model stays loaded")
    ] = False,
    run: VectorsOfRun = None,
    model: VectorsOfModel = None,
) -> None:
    """Find products by words, by meaning or by image."""
    check_address_space("LanceDB")
    with quick_imports():
        from furnclip.search import Searcher

    searcher = Searcher(call.settings(), run=run, model=model)
    for query in _queries(text, image, interactive=interactive):
        start = time.perf_counter()
        answer = searcher.search(
            query,
            image=image,
            where=where,
            exclude=exclude or [],
            sort=sort,
            literal=literal,
            all_variants=all_variants,
        )
        extra: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 4)}
        if facets:
            columns = [name for each in facets.split(",") if (name := each.strip())]
            extra["facets"] = searcher.facets(
                columns, query, where=where, exclude=exclude or [], literal=literal
            )
        if preview:
            extra["preview"] = str(_draw(searcher, answer, quiet=call.as_json))
        _answer(call, searcher, answer, query, extra)


def _queries(text: str | None, image: Path | None, *, interactive: bool) -> Iterator[str | None]:
    """The text given; then, with `--interactive`, one line after another until an empty one."""
    if text or image or not interactive:
        yield text
    lines = typer.get_text_stream("stdin", errors="replace")  # once: each stream reads ahead for itself
    while interactive:
        console.note("search for (an empty line ends):")
        line = lines.readline().strip()
        if not line:
            return
        yield line


def _answer(call: Call, searcher: Searcher, answer: Answer, text: str | None, extra: dict[str, Any]) -> None:
    payload: dict[str, Any] = {
        "query": text,
        "mode": searcher.config.search.mode if (text or "").strip() else "vector",
        "model": searcher.clip.name,
        "products": searcher.table.count_rows(),
        "understood": answer.understood,
        "note": answer.note,
        **extra,
        "hits": [hit.as_dict() for hit in answer],
    }

    def show() -> None:
        for line in filter(None, (*answer.understood, answer.note)):
            console.say(line)
        for column, counts in extra.get("facets", {}).items():
            console.say(f"{column}: {', '.join(f'{value} {count}' for value, count in counts.items())}")
        if not answer:
            console.say("no product matches")
            return
        rows = [
            (place, hit.score, hit.product_id, hit.clean_title or hit.title, hit.variants, _why(hit))
            for place, hit in enumerate(answer, start=1)
        ]
        title = f"{len(answer)} hits in {extra['seconds'] * 1000:.0f} ms"
        console.show_table(("", "score", "id", "title", "variants", "why"), rows, title=title)

    call.emit(payload, show)


def _why(hit: Hit) -> str:
    """Which words were found where, in a line: `red: title; cosine 0.31`."""
    said = [f"is the {', '.join(hit.why['exact'])}"] if "exact" in hit.why else []
    said += [f"{word}: {columns[0]}" for word, columns in hit.why.get("words", {}).items()]
    return "; ".join([*said, *([f"cosine {hit.why['cosine']:.2f}"] if "cosine" in hit.why else [])])


def _draw(searcher: Searcher, hits: Answer, *, quiet: bool) -> Path:
    """Write the contact sheet and, on a terminal, draw it; its path."""
    from furnclip.search import write_preview
    from furnclip.sources import ShopImages
    from furnclip.viewers import show_image

    config = searcher.config
    sheet = write_preview(hits, ShopImages(config), config.paths.cache / "search" / "preview.jpg")
    if not quiet:
        console.show_bytes(show_image(sheet, config.arena.viewer).data)
        console.say(f"preview: {sheet}")
    return sheet


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
        if error.name not in _SERVING:
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
