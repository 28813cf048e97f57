"""Training: exact batches, frozen towers for free, runs that resume to the bit.

In: `work/shards/` and a base model. Out: `work/runs/NAME/`. `scenarios` decides what trains and how, `exact`
has the loss and GradCache, `encoder` the cached frozen towers, `loop` the optimizer step, `finish` WiSE-FT.
"""

from furnclip.train.run import train, train_all

__all__ = ["train", "train_all"]
