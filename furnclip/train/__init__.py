"""Training: exact batches, frozen towers for free, runs that resume to the bit."""

from furnclip.train.run import train, train_all

__all__ = ["train", "train_all"]
