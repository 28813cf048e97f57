"""`furnclip train`: fine-tune CLIP on the shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from furnclip import console
from furnclip.cli.options import Call, check_address_space, takes

if TYPE_CHECKING:
    from collections.abc import Mapping

_Run = Annotated[  # torchrun takes `--run` for its own `--run-path`, hence the second spelling
    str, typer.Option("--run", "--run-name", help="name of the run; default: the scenario")
]
_Resume = Annotated[bool, typer.Option(help="continue a run of that name; off: start it again")]


@takes(
    *("train.scenario", "model.name", "train.epochs", "train.lr", "train.effective_batch_size"),
    *("train.micro_batch_size", "train.lora_r", "train.lora_alpha", "train.lora_dropout", "train.loss"),
    *(
        "train.augment",
        "train.teacher",
        "model.precision",
        "train.seed",
        "train.patience",
        "train.mini_train",
    ),
    *("train.gradient_checkpointing", "train.upload", "train.wandb", "storage.bucket", "storage.prefix"),
)
def train(
    call: Call,
    run: _Run = "",
    resume: _Resume = True,
) -> None:
    """Fine-tune CLIP on the shards.

    [bold]zero_shot[/bold]: nothing trains, the base is measured\n
    [bold]linear_probe[/bold]: both projections; the towers run once\n
    [bold]dual_lora[/bold]: LoRA in both encoders, and both projections\n
    [bold]vision_lora[/bold]: LoRA in the vision encoder, and both projections\n
    [bold]text_lora[/bold]: LoRA in the text encoder, and both projections\n
    [bold]full[/bold]: every weight\n
    [bold]auto[/bold], the default: full for a base of up to 20 million parameters, else dual_lora\n
    [bold]all[/bold]: all but full, one after another, and a table
    """
    base = call.flags.get("model", {})
    if (folder := Path(base.get("name", ""))).is_dir() and folder.name:
        base["name"] = str(folder.resolve())  # findable when the command is repeated from elsewhere
    checked = call.settings()
    check_address_space()
    from furnclip.train import train as train_run
    from furnclip.train import train_all

    if checked.train.scenario == "all":
        result = train_all(checked, prefix=run, resume=resume)
        call.emit(result, lambda: _show_ablation(result))
        return
    card = train_run(checked, run=run, resume=resume)
    if not card:  # one of several processes, and not the one that talks
        return
    call.emit(card, lambda: _show(card))


def _show(card: Mapping[str, Any]) -> None:
    if card["already_done"]:
        console.say(f"run `{card['run']}` is finished already; nothing to do")
    base, tuned = card["validation"]["base"], card["validation"]["finetuned"]
    rows = [(name.replace("_", " "), base[name], tuned[name]) for name in base]
    console.show_table(
        ("validation", "base", "finetuned"),
        rows,
        title=f"{card['run']}: {card['samples']['validation']} products, each searched among all of them",
    )
    console.say(f"next: `furnclip eval --run {card['run']}`, then `furnclip embed`")
    if card["verdict"]:
        console.say(f"{card['run']}: {card['verdict']}")


def _show_ablation(result: Mapping[str, Any]) -> None:
    if result["already_done"]:
        console.say("every scenario is finished already; nothing to do")
    rows = [
        (
            row["scenario"],
            f"{row['trainable_parameters']:,}",
            f"{row['seconds']:.0f} s",
            _with_interval(row["recall@1"]),
            _with_interval(row["recall@5"]),
            f"{row['latency_ms']['image']:.1f} / {row['latency_ms']['text']:.1f} ms",
        )
        for row in result["ablation"]
    ]
    columns = ("scenario", "trainable", "time", "recall@1", "recall@5", "image / text")
    console.show_table(columns, rows, title="text to image on the validation split, 95 % intervals")
    for row in result["ablation"]:
        if row["verdict"]:
            console.say(f"{row['run']}: {row['verdict']}")


def _with_interval(values: list[float]) -> str:
    value, low, high = values
    return f"{value:.3f} ({low:.3f} to {high:.3f})"
