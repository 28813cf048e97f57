"""`furnclip export`: the towers of a model as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from furnclip import console
from furnclip.cli.options import ConfigOption, JsonOption, check_address_space, settings
from furnclip.errors import UsageError


def export(
    *,
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
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write both encoders as ONNX, checked against torch, with all that other programs need."""
    if run and model:
        raise UsageError("`--run` and `--model` ask for two models", hint="give one of them")
    check_address_space()
    from furnclip.model.export import export_onnx

    encoder, was_there = export_onnx(onnx, settings(config), name=run or model, int8=int8)
    about = encoder.about
    if was_there:
        console.note("nothing to do: these files were written from this model already")
    payload = {
        "folder": str(onnx),
        "model": about.name,
        "fingerprint": about.fingerprint,
        "dimension": about.dimension,
        "cosines": about.cosines,
        "up_to_date": was_there,
    }

    def show() -> None:
        sizes = {file: about.files[file] + about.files[f"{file}.data"] for file in about.cosines}
        rows = [(file, sizes[file] / 1e6, f"{cosine:.6f}") for file, cosine in about.cosines.items()]
        console.show_table(("file", "MB", "lowest cosine to torch"), rows, title=f"`{about.name}` as ONNX")
        console.say(f"how to use them: {onnx / 'README.md'}")

    console.emit(payload, as_json=as_json, human=show)
