"""What `test_train.py` starts on each rank: the gradient of one batch, shared between the processes.

`python -m tests.train_ranks MODEL OUT`: the first process writes the summed gradient to OUT.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from furnclip.train.exact import contrastive_loss, exact_backward
from furnclip.train.processes import Processes, joined
from tests.test_train_exact import CAPTIONS, GROUPS, SAMPLES, Setting, positives_of


def shared_gradient(model: Path, processes: Processes) -> dict[str, torch.Tensor]:
    """The gradient after each process has run its slice in micro-batches of 5."""
    setting = Setting(model, "dual_lora", dropout=0.0)
    own = processes.slice_of(SAMPLES)
    images, texts = setting.chunks([*range(own.start, own.stop, 5), own.stop])
    scalars = {"logit_scale": setting.encoder.clip.module.logit_scale}
    positive = positives_of(CAPTIONS, GROUPS)
    exact_backward(
        images,
        texts,
        lambda a, b: contrastive_loss(a, b, scalars, positive, name="softmax"),
        gather=processes.gather(SAMPLES),
    )
    processes.sum_gradients(setting.parameters, replicated=scalars)
    return {
        name: parameter.grad for name, parameter in setting.parameters.items() if parameter.grad is not None
    }


if __name__ == "__main__":
    with joined() as these:
        gradient = shared_gradient(Path(sys.argv[1]), these)
        if these.first:
            save_file(gradient, sys.argv[2])
