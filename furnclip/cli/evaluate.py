"""`furnclip eval`: base and fine-tuned models on the test split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from furnclip import console
from furnclip.cli.options import ConfigOption, Flags, JsonOption, check_address_space, sets, settings

if TYPE_CHECKING:
    from furnclip.evaluate import Evaluation


@sets("model.name", "eval.split")
def evaluate(
    *,
    flags: Flags,
    config: ConfigOption = None,
    run: Annotated[
        list[str] | None, typer.Option("--run", help="run to measure, repeatable; without it the latest")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="measure again although nothing changed")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare models: recall, intervals, tests, images; writes report.html and report.json."""
    check_address_space()
    from furnclip.evaluate import evaluate as run_evaluation

    result = run_evaluation(settings(config, flags), run or (), force=force)
    if result.was_there:
        console.note(
            "nothing to do: the same models, data and settings were measured before (`--force` repeats it)"
        )
    payload = {**result.report, "report": str(result.html_path)}
    console.emit(payload, as_json=as_json, human=lambda: _show(result))


def _show(result: Evaluation) -> None:
    from furnclip.evaluate import comparison_lines, summary_table

    report = result.report
    columns, rows = summary_table(report)
    title = f"text to image, {report['queries']} queries, gallery of {report['gallery_size']}"
    console.show_table(columns, rows, title=title)
    for line in (*comparison_lines(report), f"report: {result.html_path}"):
        console.say(line)
