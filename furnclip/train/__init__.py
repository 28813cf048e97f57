"""Training: exact batches, frozen towers for free, runs that resume to the bit.

In: `work/shards/` and a base model. Out: `work/runs/NAME/`. The techniques and their sources are in the
modules: `exact` (GradCache), `encoder` (cached frozen towers), `losses`, `data`, `finish` (WiSE-FT).
"""

from furnclip.train.ablation import train_all
from furnclip.train.run import train

__all__ = ["train", "train_all"]
