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

from furnclip.journal import MANIFEST_NAME as MANIFEST_NAME
from furnclip.shards.manifest import FOLDERS as FOLDERS
from furnclip.shards.manifest import MINI_TRAIN as MINI_TRAIN
from furnclip.shards.manifest import REST as REST
from furnclip.shards.manifest import SPLITS as SPLITS
from furnclip.shards.manifest import Manifest as Manifest
from furnclip.shards.manifest import read_manifest as read_manifest
from furnclip.shards.manifest import write_manifest as write_manifest
from furnclip.shards.place import ShardPlace as ShardPlace
from furnclip.shards.place import open_shards as open_shards
from furnclip.shards.reader import ProductImages as ProductImages
from furnclip.shards.reader import ShardDataset as ShardDataset
from furnclip.shards.tar import Sample as Sample
from furnclip.shards.tar import seen_hash as seen_hash
