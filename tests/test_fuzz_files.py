"""Every file that furnclip writes and reads, damaged at random: an answer or an error, no traceback."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from tests.fuzzing import CLEAN, Mutation, damage, finish_shop, run, versions
from tests.mutations import mutate_bytes, mutate_json

STATUS = ("clean", "status")
SEARCH = ("search", "red chair", "-k", "3")


@dataclass(frozen=True)
class Reader:
    """A file of the shop, the commands that read it, and what has to go first so that they do."""

    file: str
    commands: tuple[tuple[str, ...], ...]
    forget: tuple[str, ...] = ()
    json: bool = False

    @property
    def mutations(self) -> tuple[Mutation, ...]:
        return (mutate_bytes, mutate_json) if self.json else (mutate_bytes,)


RUN = "work/runs/probe"
TRAIN = ("train", "--run", "probe")
TRAIN_NEW = ("train", "--run", "new")
READERS = {
    "settings": Reader("furnclip.toml", (STATUS,)),
    "dotenv": Reader(".env", (STATUS,)),
    "journal": Reader("work/clean/journal.jsonl", (STATUS, CLEAN), json=True),
    "clean-rows": Reader("work/clean/rows.jsonl", (STATUS, CLEAN)),
    "clean-results": Reader(
        "work/clean/results/part-0001.output.jsonl", (CLEAN,), ("work/clean/cleaned.csv",), json=True
    ),
    "cleaned": Reader("work/clean/cleaned.csv", (("prepare", "--check"), ("prepare",))),
    "manifest": Reader("work/shards/manifest.json", (("prepare", "--check"), TRAIN, ("embed",)), json=True),
    "shard-index": Reader("work/shards/train/shard-000000.parquet", (("prepare",), TRAIN_NEW)),
    "shard": Reader("work/shards/train/shard-000000.tar", (("prepare",), TRAIN_NEW), ("work/cache",)),
    "run-card": Reader(f"{RUN}/run.json", (TRAIN, SEARCH), json=True),
    "position": Reader(
        f"{RUN}/checkpoints/last/position.json", (TRAIN,), (f"{RUN}/run.json", f"{RUN}/model"), json=True
    ),
    "model-config": Reader(f"{RUN}/model/config.json", (SEARCH,), json=True),
    "model-preprocessing": Reader(f"{RUN}/model/preprocessor_config.json", (SEARCH,), json=True),
    "model-weights": Reader(f"{RUN}/model/model.safetensors", (SEARCH,)),
    "vectors": Reader("work/embeddings/master_vectors.parquet", (("embed",),)),
    "index": Reader("work/index.lance/data/*.lance", (SEARCH,)),
    "index-version": Reader("work/index.lance/_versions/*.manifest", (SEARCH,)),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    return finish_shop(tmp_path_factory.mktemp("fuzz") / "shop", tiny_clip)


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused(name: str, finished: Path, tmp_path: Path) -> None:
    reader = READERS[name]
    for seed in versions():
        shop = Path(shutil.copytree(finished, tmp_path / "shop"))
        for path in reader.forget:
            target = shop / path
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        damage(sorted(shop.glob(reader.file))[-1], reader.mutations, Random(f"{name} {seed}"))
        for words in reader.commands:
            run(shop, words, f"{name}, seed {seed}")
        shutil.rmtree(shop)
