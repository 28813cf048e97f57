"""Embedding: products a second against the plain loop, the bare model, open_clip and sentence-transformers.

    python -m tests.bench.embed [--quick] [--json]

ViT-B/32 with random weights, JPEGs of 500 pixels, one caption a product, two threads. Every
contender is a process of its own that turns the same files and captions into unit vectors; what is
timed begins with the model loaded and ends with the vectors. furnclip: from the images by way of the
shards, start of `furnclip prepare` included, to the vector file and the search table on the disk; what a
model costs once, loading it and writing it as ONNX for searches, is `furnclip_loading_s`. It chooses its
precision itself, as a user would have it; the plain loop, open_clip and sentence-transformers run as their
documentation shows, in float32. `model_only` is the forward pass of Hugging Face's model on ready tensors,
in furnclip's precision.

open_clip and sentence-transformers need torchvision, of which there is no build beside a CPU-only
torch from every index; its compiled operators, which neither of them calls here, are declared empty.
Where BENCH_EXTRAS names a folder (`pip install --no-deps --target FOLDER open_clip_torch
sentence-transformers torchvision ...`), only those two see it. A rival that cannot run is left out
and named under `figures`.

`--quick` leaves the two libraries out. Memory: 10,000 and 100,000 products (`--quick`: 500 and 3,000)
through a model of stub size.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.bench import measure

BATCH = 64
THREADS = 2
QUICK = ("furnclip", "plain_loop", "model_only")
CONTENDERS = (*QUICK, "open_clip", "sentence_transformers")
COLORS = ("red", "blue", "green", "brown", "black", "white")
MATERIALS = ("oak", "walnut", "steel", "velvet", "linen", "glass")
DECLARED: list[Any] = []  # torchvision operators; they vanish with their library object
KINDS = ("armchair", "sofa", "sideboard", "lamp", "table", "bookcase")


def main() -> None:
    arguments = measure.parse("embed")
    if os.environ.get("BENCH_CONTENDER"):
        return contend(os.environ["BENCH_CONTENDER"])
    rounds, products = (1, 128) if arguments.quick else (3, 1024)
    contenders = QUICK if arguments.quick else CONTENDERS
    sizes = (500, 3_000) if arguments.quick else (10_000, 100_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shop = write_shop(folder / "shop", products, images=products, side_px=500)
        write_model(folder / "vit-b-32", image_px=224, stub=False)
        rates, figures = race(folder, shop, contenders, rounds=rounds)
        write_model(folder / "stub", image_px=32, stub=True)
        figures |= memory(folder, sizes)
    ours = rates["furnclip"]
    ratios = {rival: round(ours / rates[rival], 3) for rival in contenders[1:] if rival in rates}
    figures |= {f"{contender}_per_s": round(rate, 2) for contender, rate in rates.items()}
    measure.report("embed", ratios, figures, as_json=arguments.json)


def race(
    folder: Path, shop: Path, contenders: Sequence[str], *, rounds: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Median products a second of every contender that can run, in turn, and what else they said."""
    seen: dict[str, list[float]] = {}
    figures: dict[str, Any] = {}
    for _ in range(rounds):
        for contender in contenders:
            said = run_contender(contender, folder, shop, precision=figures.get("precision", "fp32"))
            print(f"{contender}: {said}", file=sys.stderr)
            if "error" in said:
                figures[f"{contender}_left_out"] = said["error"]
            else:
                seen.setdefault(contender, []).append(said.pop("per_s"))
                figures |= said
    return {contender: statistics.median(values) for contender, values in seen.items()}, figures


def run_contender(contender: str, folder: Path, shop: Path, *, precision: str) -> dict[str, Any]:
    environment = {
        **os.environ,
        "BENCH_CONTENDER": contender,
        "BENCH_FOLDER": str(folder),
        "BENCH_SHOP": str(shop),
        "BENCH_PRECISION": precision,
        "OMP_NUM_THREADS": str(THREADS),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    extras = os.environ.get("BENCH_EXTRAS")
    if extras and contender in ("open_clip", "sentence_transformers"):
        environment["PYTHONPATH"] = extras
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.embed"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    said: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return said


def contend(contender: str) -> None:
    """Inside the contender's process: load, run once on a few products, then measure."""
    torch.set_num_threads(THREADS)
    folder, shop = Path(os.environ["BENCH_FOLDER"]), Path(os.environ["BENCH_SHOP"])
    if contender == "furnclip":
        said = furnclip(folder, shop)
    else:
        paths, captions = read_shop(shop)
        embed = RIVALS[contender](folder)
        embed(paths[:8], captions[:8])
        start = time.perf_counter()
        images, texts = embed(paths, captions)
        seconds = time.perf_counter() - start
        assert images.shape == texts.shape == (len(paths), 512)
        said = {"per_s": len(paths) / seconds}
    print(json.dumps(said))


def furnclip(folder: Path, shop: Path) -> dict[str, Any]:
    from furnclip.config import load_config
    from furnclip.embed import embed_catalogue

    with tempfile.TemporaryDirectory() as work:
        flags = {"paths": {"work": work}, "model": {"name": str(folder / "vit-b-32")}}
        config = load_config(shop / "furnclip.toml", flags)
        # It reads the images, which is a part of the work; its workers would import torch from this process.
        command = [sys.executable, "-m", "furnclip", "prepare", "--config", str(shop / "furnclip.toml")]
        start = time.perf_counter()
        subprocess.run(
            command, env={**os.environ, "FURNCLIP_PATHS__WORK": work}, check=True, capture_output=True
        )
        prepare_s = time.perf_counter() - start
        summary = embed_catalogue(config)
    model = summary.provenance.models["base"]
    return {
        "per_s": summary.products / (prepare_s + summary.seconds - summary.loading_s),
        "furnclip_from_shards_per_s": round(summary.products / (summary.seconds - summary.loading_s), 2),
        "precision": model.precision,
        "precision_cosine": model.precision_cosine,
        "furnclip_loading_s": round(summary.loading_s, 2),
    }


Embed = Callable[[list[Path], list[str]], tuple[np.ndarray, np.ndarray]]


def plain_loop(folder: Path) -> Embed:
    """What one writes after reading the model card: processor, model, normalize, batch by batch."""
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(folder / "vit-b-32").eval()
    processor = CLIPProcessor.from_pretrained(folder / "vit-b-32")

    @torch.inference_mode()
    def embed(paths: list[Path], captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        images, texts = [], []
        for rows in batches(len(paths)):
            opened = [Image.open(path).convert("RGB") for path in paths[rows]]
            inputs = processor(text=captions[rows], images=opened, return_tensors="pt", padding=True)
            images.append(numpy_unit(model.get_image_features(pixel_values=inputs["pixel_values"])))
            texts.append(
                numpy_unit(
                    model.get_text_features(
                        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
                    )
                )
            )
        return np.concatenate(images), np.concatenate(texts)

    return embed


def model_only(folder: Path) -> Embed:
    """The forward pass alone, on tensors that are ready, in the precision that furnclip took."""
    from transformers import AutoTokenizer, CLIPModel

    dtype = torch.bfloat16 if os.environ["BENCH_PRECISION"] == "bf16" else torch.float32
    model = CLIPModel.from_pretrained(folder / "vit-b-32").eval().to(dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder / "vit-b-32")
    pixels = torch.rand(BATCH, 3, 224, 224).to(dtype)

    @torch.inference_mode()
    def embed(paths: list[Path], captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        images, texts = [], []
        for rows in batches(len(paths)):
            images.append(numpy_unit(model.get_image_features(pixel_values=pixels[: len(paths[rows])])))
            tokens = tokenizer(captions[rows], return_tensors="pt", padding=True)
            texts.append(numpy_unit(model.get_text_features(**tokens)))
        return np.concatenate(images), np.concatenate(texts)

    return embed


def open_clip(folder: Path) -> Embed:
    """open_clip's own ViT-B/32, transform and tokenizer, as its README shows."""
    DECLARED.extend(_declare_torchvision_operators())
    import open_clip as library

    model, _, preprocess = library.create_model_and_transforms("ViT-B-32-quickgelu")
    model.eval()
    tokenizer = library.get_tokenizer("ViT-B-32-quickgelu")

    @torch.inference_mode()
    def embed(paths: list[Path], captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        images, texts = [], []
        for rows in batches(len(paths)):
            pixels = torch.stack([preprocess(Image.open(path)) for path in paths[rows]])
            images.append(numpy_unit(model.encode_image(pixels)))
            texts.append(numpy_unit(model.encode_text(tokenizer(captions[rows]))))
        return np.concatenate(images), np.concatenate(texts)

    return embed


def sentence_transformers(folder: Path) -> Embed:
    """`SentenceTransformer.encode` over the same Hugging Face folder."""
    DECLARED.extend(_declare_torchvision_operators())
    from sentence_transformers import SentenceTransformer, models

    model = SentenceTransformer(modules=[models.CLIPModel(str(folder / "vit-b-32"))], device="cpu")

    def embed(paths: list[Path], captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        options: dict[str, Any] = {"batch_size": BATCH, "normalize_embeddings": True}
        images = model.encode([Image.open(path) for path in paths], **options)
        return images, model.encode(captions, **options)

    return embed


RIVALS: dict[str, Callable[[Path], Embed]] = {
    "plain_loop": plain_loop,
    "model_only": model_only,
    "open_clip": open_clip,
    "sentence_transformers": sentence_transformers,
}


def _declare_torchvision_operators() -> list[Any]:
    """Empty operators in place of compiled ones that do not load."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return [library]
    return []


def numpy_unit(features: Any) -> np.ndarray:
    tensor = getattr(features, "pooler_output", features).float()
    return torch.nn.functional.normalize(tensor, dim=-1).numpy()


def batches(count: int) -> Iterator[slice]:
    return (slice(start, start + BATCH) for start in range(0, count, BATCH))


# --- memory


def memory(folder: Path, sizes: tuple[int, int]) -> dict[str, Any]:
    """Peak memory of the command for a small and a larger catalogue, while it encodes and in all.

    What comes behind encoding is LanceDB's: it builds the search table.
    """
    figures: dict[str, Any] = {}
    for products in sizes:
        shop = write_shop(folder / f"shop-{products}", products, images=products, side_px=64)
        (shop / "furnclip.toml").write_text(f'[model]\nname = "{folder / "stub"}"\nprecision = "fp32"\n')
        subprocess.run(
            [sys.executable, "-m", "furnclip", "prepare"], cwd=shop, check=True, capture_output=True
        )
        table = shop / "work" / "index.lance"
        seconds, peaks = measure.peaks_mb(
            [sys.executable, "-m", "furnclip", "embed"],
            partial(_stage, table),
            cwd=shop,
        )
        figures[f"encoding_peak_mb_{products}"] = round(peaks["encoding"], 1)
        figures[f"peak_mb_{products}"] = round(max(peaks.values()), 1)
        figures[f"stub_per_s_{products}"] = round(products / seconds, 1)
    for name in ("encoding_peak", "peak"):
        small, large = (figures[f"{name}_mb_{products}"] for products in sizes)
        figures[f"{name}_growth"] = round(large / small, 3)
    figures["peak_mb"] = figures[f"peak_mb_{sizes[1]}"]
    return figures


def _stage(table: Path) -> str:
    return "table" if table.exists() else "encoding"


# --- what is embedded


def write_shop(folder: Path, products: int, *, images: int, side_px: int) -> Path:
    """`products.csv`, JPEGs with the grain of photographs, and a `furnclip.toml`."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for index in range(images):
        coarse = Image.fromarray(random.integers(0, 255, (12, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side_px, side_px * 4 // 5), Image.Resampling.BICUBIC), np.float32)
        grain = random.normal(0, 6, smooth.shape)
        photo = Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))
        photo.save(folder / "images" / f"{index}.jpg", quality=90)
    with (folder / "products.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("product_id", "title", "image"))
        for index in range(products):
            writer.writerow((f"P{index}", caption(index), f"{index % images}.jpg"))
    (folder / "furnclip.toml").write_text("", encoding="utf-8")
    return folder


def caption(index: int) -> str:
    words = (COLORS[index % 6], MATERIALS[index // 6 % 6], KINDS[index // 36 % 6])
    return f"{' '.join(words)} with soft seat and two drawers, no {index}"


def read_shop(shop: Path) -> tuple[list[Path], list[str]]:
    with (shop / "products.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [shop / "images" / row["image"] for row in rows], [f"a photo of {row['title']}" for row in rows]


def write_model(folder: Path, *, image_px: int, stub: bool) -> None:
    """A Hugging Face folder with random weights: ViT-B/32, or something that costs next to nothing."""
    from examples.make_tiny_clip import build_tiny_clip

    captions = [caption(index) for index in range(216)]
    build_tiny_clip(folder, captions, image_px=image_px, width=32, layers=1, patch_px=32)
    if not stub:
        from transformers import CLIPConfig, CLIPModel

        config, learned = CLIPConfig(), CLIPConfig.from_pretrained(folder).text_config
        config.text_config.bos_token_id = learned.bos_token_id
        config.text_config.eos_token_id = learned.eos_token_id
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)


if __name__ == "__main__":
    main()
