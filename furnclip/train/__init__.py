"""Training: exact batches, frozen towers for free, runs that resume to the bit.

In: `work/shards/` and a base model. Out: `work/runs/NAME/`. The techniques and their sources are in the
modules: `scenarios`, `data`, `encoder` (cached frozen towers), `exact` (the loss and GradCache), `loop` (the
optimizer step), `finish` (WiSE-FT).
"""

from furnclip.train.run import train, train_all

__all__ = ["train", "train_all"]
