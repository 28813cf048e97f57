"""The shard format: WebDataset tar files with an index beside each, and a manifest over all of them.

    work/shards/manifest.json                    written last; where it exists, everything below is complete
    work/shards/train/shard-000000.tar           KEY.jpg, KEY.1.jpg ..., KEY.json, KEY.txt; also validation,
                                                 test, rest (in no split, but searchable) and mini_train
    work/shards/train/shard-000000.parquet       where each sample lies in the tar, and its texts
    work/shards/assignments.parquet              product -> group and split, for ever

`open_shards` finds them in this folder or in the bucket, `ShardDataset` reads the samples of a split by their
numbers, `ProductImages` finds the images of one product. The tar files are plain WebDataset and readable by
any of its readers.
"""

from furnclip.journal import MANIFEST_NAME
from furnclip.shards.manifest import (
    FOLDERS,
    MINI_TRAIN,
    REST,
    SPLITS,
    Manifest,
    read_assignments,
    read_manifest,
    write_manifest,
)
from furnclip.shards.place import ShardPlace, open_shards
from furnclip.shards.reader import ProductImages, ShardDataset
from furnclip.shards.tar import Sample, seen_hash

__all__ = [
    "FOLDERS",
    "MANIFEST_NAME",
    "MINI_TRAIN",
    "REST",
    "SPLITS",
    "Manifest",
    "ProductImages",
    "Sample",
    "ShardDataset",
    "ShardPlace",
    "open_shards",
    "read_assignments",
    "read_manifest",
    "seen_hash",
    "write_manifest",
]
