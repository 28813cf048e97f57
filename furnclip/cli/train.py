"""`furnclip train`: fine-tune CLIP on the shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from furnclip.cli.options import ConfigOption, JsonOption, check_address_space, settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from furnclip.config import Config

_SCENARIOS = """Fine-tune CLIP on the shards.

[bold]zero_shot[/bold]: nothing trains, the base is measured\n
[bold]linear_probe[/bold]: both projections; the towers run once\n
[bold]dual_lora[/bold]: LoRA in both encoders, and both projections\n
[bold]vision_lora[/bold]: LoRA in the vision encoder, and both projections\n
[bold]text_lora[/bold]: LoRA in the text encoder, and both projections\n
[bold]full[/bold]: every weight, lower layers more slowly\n
[bold]all[/bold]: the first five one after another, and a table
"""


_Scenario = Annotated[str | None, typer.Option(help="what trains, see above")]
_Run = Annotated[  # torchrun takes `--run` for its own `--run-path`, hence the second spelling
    str, typer.Option("--run", "--run-name", help="name of the run; default: the scenario")
]
_Model = Annotated[str | None, typer.Option(help="base model: hub id, folder or `furnclip-tiny`")]
_Epochs = Annotated[int | None, typer.Option(help="passes over the training split")]
_Lr = Annotated[float | None, typer.Option(help="peak learning rate")]
_Effective = Annotated[int | None, typer.Option(help="samples that one step contrasts; 0: chosen")]
_Micro = Annotated[int | None, typer.Option(help="samples in one forward pass; 0: the largest that fits")]
_LoraR = Annotated[int | None, typer.Option(help="rank of the adapters")]
_LoraAlpha = Annotated[int | None, typer.Option(help="scale of the adapters, over the rank")]
_LoraDropout = Annotated[float | None, typer.Option(help="dropout before the adapters")]
_Loss = Annotated[str | None, typer.Option(help="auto, softmax or sigmoid")]
_Augment = Annotated[str | None, typer.Option(help="none, simple or advanced")]
_Precision = Annotated[str | None, typer.Option(help="auto, fp32 or bf16")]
_Seed = Annotated[int | None, typer.Option(help="seed of everything random")]
_Patience = Annotated[int | None, typer.Option(help="epochs without progress; 0: never stop early")]
_MiniTrain = Annotated[
    bool | None, typer.Option("--mini-train", help="train on the small `mini_train` split")
]
_Recompute = Annotated[bool | None, typer.Option("--gradient-checkpointing", help="less memory, more time")]
_Resume = Annotated[bool, typer.Option(help="go on with a run of that name; off: start it over")]
_Upload = Annotated[bool | None, typer.Option("--upload", help="copy checkpoints to the bucket")]
_Wandb = Annotated[str | None, typer.Option(help="off, offline or online")]
_Bucket = Annotated[str | None, typer.Option(help="the bucket")]
_Prefix = Annotated[str | None, typer.Option(help="key prefix in the bucket")]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(
        "train",
        help=_SCENARIOS,
        epilog="Example: furnclip train --scenario dual_lora --effective-batch-size 1024",
    )(train)


def train(
    scenario: _Scenario = None,
    run: _Run = "",
    model: _Model = None,
    epochs: _Epochs = None,
    lr: _Lr = None,
    effective_batch_size: _Effective = None,
    micro_batch_size: _Micro = None,
    lora_r: _LoraR = None,
    lora_alpha: _LoraAlpha = None,
    lora_dropout: _LoraDropout = None,
    loss: _Loss = None,
    augment: _Augment = None,
    precision: _Precision = None,
    seed: _Seed = None,
    patience: _Patience = None,
    mini_train: _MiniTrain = None,
    gradient_checkpointing: _Recompute = None,
    resume: _Resume = True,
    upload: _Upload = None,
    wandb: _Wandb = None,
    s3_bucket: _Bucket = None,
    s3_prefix: _Prefix = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    flags = {
        "scenario": scenario,
        "epochs": epochs,
        "lr": lr,
        "effective_batch_size": effective_batch_size,
        "micro_batch_size": micro_batch_size,
        "lora_r": lora_r,
        "lora_alpha": lora_alpha,
        "lora_dropout": lora_dropout,
        "loss": loss,
        "augment": augment,
        "seed": seed,
        "patience": patience,
        "mini_train": mini_train,
        "gradient_checkpointing": gradient_checkpointing,
        "upload": upload,
        "wandb": wandb,
    }
    base = {"name": _folder_made_absolute(model), "precision": precision}
    bucket = {"bucket": s3_bucket, "prefix": s3_prefix}
    checked = settings(config, train=flags, model=base, storage=bucket)
    _train_and_show(checked, run, resume=resume, as_json=as_json)


def _train_and_show(checked: Config, run: str, *, resume: bool, as_json: bool) -> None:
    from furnclip import console

    check_address_space()
    from furnclip.train import train as train_run
    from furnclip.train import train_all

    if checked.train.scenario == "all":
        result = train_all(checked, prefix=run, resume=resume)
        console.emit(result, as_json=as_json, human=lambda: _show_ablation(result))
        return
    card = train_run(checked, run=run, resume=resume)
    if not card:  # one of several processes, and not the one that talks
        return
    console.emit(card, as_json=as_json, human=lambda: _show(card))


def _folder_made_absolute(model: str | None) -> str | None:
    """A folder stays findable when the command is repeated from elsewhere; other names are kept."""
    return str(Path(model).resolve()) if model and Path(model).is_dir() else model


def _show(card: Mapping[str, Any]) -> None:
    from furnclip import console

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


def _show_ablation(result: Mapping[str, Any]) -> None:
    from furnclip import console

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
    columns = ("scenario", "trainable", "time", "recall@1", "recall@5", "picture / text")
    console.show_table(columns, rows, title="text to image on the validation split, 95 % intervals")


def _with_interval(values: list[float]) -> str:
    value, low, high = values
    return f"{value:.3f} ({low:.3f} to {high:.3f})"
