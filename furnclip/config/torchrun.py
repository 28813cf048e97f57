"""Which of how many processes this is, as `torchrun` says it: the one place that reads its variables."""

from __future__ import annotations

from dataclasses import dataclass

from furnclip.config.environment import environment_variables

_NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")
_TEXTS = ("MASTER_ADDR", "TORCHELASTIC_RUN_ID")
_STRAY = ("RANK", "LOCAL_RANK", "WORLD_SIZE")  # set by schedulers and left over in shells


@dataclass(frozen=True)
class Launch:
    """This process among `count`; `ignored` says which variables were set without torchrun, if any."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    ignored: str = ""


def torchrun_launch() -> Launch:
    """What torchrun started; a single process unless all of its variables are there and fit together.

    A left-over `RANK` would make a process wait for others that were never started.
    """
    variables = environment_variables()
    missing = [name for name in (*_NUMBERS, *_TEXTS) if not variables.get(name)]
    numbers = {name: int(text) for name in _NUMBERS if (text := variables.get(name, "")).isdecimal()}
    complete = not missing and len(numbers) == len(_NUMBERS)
    if complete and numbers["LOCAL_RANK"] <= numbers["RANK"] < numbers["WORLD_SIZE"]:
        return Launch(numbers["RANK"], numbers["WORLD_SIZE"], numbers["LOCAL_RANK"])
    stray = [f"{name}={variables[name]}" for name in _STRAY if variables.get(name)]
    if not stray:
        return Launch()
    reason = f"without {', '.join(missing)}" if missing else "but torchrun's variables contradict each other"
    return Launch(
        ignored=f"ignored {', '.join(stray)} {reason}: this is one process, not started by torchrun"
    )
