"""The products that are measured on: one split of the shards, without their images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from furnclip.catalogue import ATTRIBUTES, content_hash
from furnclip.config import Config
from furnclip.errors import InputError
from furnclip.images import open_image
from furnclip.relevance import known
from furnclip.shards import Sample, ShardDataset


@dataclass(frozen=True)
class Split:
    """N products, in shard order; images are read when they are needed."""

    name: str
    dataset: ShardDataset
    product_ids: tuple[str, ...]
    image_keys: tuple[str, ...]  # hashes of the images
    titles: tuple[str, ...]
    captions: tuple[str, ...]
    groups: tuple[str, ...]
    attributes: dict[str, tuple[str, ...]]  # attribute -> its value for each product, "" where not known

    def __len__(self) -> int:
        return len(self.product_ids)

    @property
    def data_hash(self) -> str:
        return self.dataset.data_hash

    def image(self, index: int) -> Image.Image:
        return open_image(self.dataset[index].image_bytes)

    def images(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        return (self.image(index) for index in indices)


def read_split(config: Config) -> Split:
    """The split that `config.eval` names.

    Raises `MissingStageError` without shards and `InputError` when the split is empty.
    """
    name = config.eval.split
    dataset = ShardDataset(config.paths.shards, name)
    if not len(dataset):
        raise InputError(
            f"the {name} split holds no products",
            hint="lower `prepare.train_fraction`, or add products, and run `furnclip prepare` again",
        )
    # Row by row, so that the images are not in memory together.
    rows = [
        (
            sample.product_id,
            content_hash(sample.image_bytes),
            _title(sample),
            sample.caption,
            sample.group,
            _attributes(sample),
        )
        for sample in dataset
    ]
    product_ids, image_keys, titles, captions, groups, attributes = zip(*rows, strict=True)
    by_name = {name: tuple(row[name] for row in attributes) for name in ATTRIBUTES}
    return Split(name, dataset, product_ids, image_keys, titles, captions, groups, by_name)


def _title(sample: Sample) -> str:
    return sample.fields.get("clean_title") or sample.title


def _attributes(sample: Sample) -> dict[str, str]:
    return {name: known(sample.fields.get(name)) for name in ATTRIBUTES}
