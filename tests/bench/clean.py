"""How fast `clean prepare` and `clean finalize` are, against the plain way of doing each.

    python -m tests.bench.clean [--quick] [--json]

The catalogue repeats a few dozen images of 1600 x 1200 pixels, drawn with the grain of a photograph, under
as many ids and titles as there are rows. The plain way of preparing decodes each image in full in one
process, scales it with LANCZOS, pads it to a square and writes base64 lines; that of finalizing is a loop
over the answers that writes cell by cell into a pandas frame. Both read the same files in the same run.
The plain rates are measured on fewer rows where the whole would take hours; the plain finalize gets slower
with the number of rows, so it is measured on a frame of full size. Finalizing looks at no image; its
requests are noted as prepared without drawing 50,000 of them. `finalize` is against writing by `frame.loc`,
`finalize_at` against the faster `frame.at`.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from furnclip.catalogue import content_hash
from furnclip.clean.prompt import FIELDS, PROMPT, AllowedWords, answer_schema
from furnclip.clean.workspace import PartRequest, RowEntry, Workspace
from furnclip.config import CleaningConfig
from furnclip.journal import Journal, encode_event, sha256_of
from tests.bench.measure import parse, peak_mb, report

PART = 10_000
SIZE_PX = (1600, 1200)
COMMAND = [sys.executable, "-m", "furnclip", "clean"]


def write_catalogue(folder: Path, rows: int, images: int) -> None:
    """`products.csv`, `images/` and settings for a run that asks no one."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for number in range(images):
        small = random.integers(0, 255, (9, 12, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(small).resize(SIZE_PX, Image.Resampling.BICUBIC), dtype=np.int16)
        grain = random.normal(0, 6, (SIZE_PX[1], SIZE_PX[0], 1)).astype(np.int16)
        pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number:02d}.jpg", quality=90)
    with (folder / "products.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["product_id", "title", "image", "price", "vendor"])
        for row in range(rows):
            title = f"ACME No. {row} Oak Sideboard, 3 doors - FREE SHIPPING"
            writer.writerow([f"P{row:06d}", title, f"{row % images:02d}.jpg", f"{row % 900}.99", "Acme"])
    (folder / "furnclip.toml").write_text('[clean]\nbackend = "openai"\ntier = 4\n', encoding="utf-8")


# --- prepare


def plain_prepare(folder: Path, rows: int) -> None:
    """One process, full decode, LANCZOS, a white square, base64."""
    config = CleaningConfig()
    schema = answer_schema(AllowedWords.from_config(config))
    frame = pd.read_csv(folder / "products.csv", nrows=rows)
    with (folder / "plain.jsonl").open("w", encoding="utf-8") as file:
        for index, row in frame.iterrows():
            image = Image.open(folder / "images" / row["image"]).convert("RGB")
            scale = config.image_px / max(image.size)
            fitted = image.resize(
                (round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS
            )
            square = Image.new("RGB", (config.image_px, config.image_px), (255, 255, 255))
            square.paste(fitted, (0, 0))
            buffer = io.BytesIO()
            square.save(buffer, "JPEG", quality=config.jpeg_quality)
            encoded = base64.b64encode(buffer.getvalue()).decode()
            content = [
                {"type": "text", "text": row["title"]},
                {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{encoded}"}},
            ]
            form = {"type": "json_schema", "json_schema": {"name": "f", "strict": True, "schema": schema}}
            messages = [
                {"role": "developer", "content": PROMPT},
                {"role": "user", "content": content},
            ]
            body = {"model": config.model, "messages": messages, "response_format": form}
            line = {
                "custom_id": str(index),
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            }
            file.write(json.dumps(line) + "\n")


def our_prepare(folder: Path, rows: int) -> tuple[float, float]:
    """Seconds and peak of `clean prepare` on the first `rows` rows, start of the process included."""
    shutil.rmtree(folder / "work", ignore_errors=True)
    return peak_mb([*COMMAND, "prepare", "--limit", str(rows)], cwd=folder)


# --- finalize


def write_prepared(folder: Path, rows: int) -> None:
    """A workspace in which every row was asked and answered."""
    workspace = Workspace(folder / "work" / "clean")
    shutil.rmtree(workspace.folder, ignore_errors=True)
    for name in ("parts", "results"):
        (workspace.folder / name).mkdir(parents=True)
    ids = [f"P{row:06d}-{content_hash(str(row))}" for row in range(rows)]
    with workspace.rows.open("wb") as file:
        for row, custom_id in enumerate(ids):
            file.write(encode_event(RowEntry(row + 1, f"P{row:06d}", custom_id)._asdict()))
    with Journal(workspace.journal) as journal:
        journal.append({"event": "started", "run": "bench", "at": 0, "key_print": ""})
        for part, start in enumerate(range(0, rows, PART), start=1):
            journal.append(_answered_part(workspace, part, ids[start : start + PART]))
        facts = {"rows": rows, "requests": rows, "rejected": 0, "rows_sha256": sha256_of(workspace.rows)}
        prepared = {"event": "prepared", "fingerprint": "", "backend": "openai", "identity": "", **facts}
        journal.append({**prepared, "catalogue_sha256": sha256_of(folder / "products.csv")})


def _answered_part(workspace: Workspace, part: int, ids: list[str]) -> dict[str, Any]:
    workspace.write_index(part, [PartRequest(custom_id, 0, 0, 0, 0) for custom_id in ids])
    with workspace.results(part)[0].open("wb") as file:
        for number, custom_id in enumerate(ids):
            file.write(json.dumps(answer_line(custom_id, number)).encode() + b"\n")
    facts = {"part": part, "requests": len(ids), "size_bytes": 1, "tokens": 0, "sha256": "0" * 64}
    facts["index_sha256"] = sha256_of(workspace.index(part))
    made_for = {"backend": "openai", "source": "openai:gpt-5-nano", "identity": ""}
    return {"event": "planned", **facts, **made_for, "status": "downloaded"}


def answer_line(custom_id: str, number: int) -> dict[str, Any]:
    values = (f"oak sideboard {number}", "rustic", "wood", "brown", "sideboard")
    message = {
        "role": "assistant",
        "content": json.dumps(dict(zip(FIELDS, values, strict=True))),
        "refusal": None,
        "annotations": [],
    }
    details = {"cached_tokens": 0, "audio_tokens": 0, "reasoning_tokens": 0}
    usage = {"prompt_tokens": 1000, "completion_tokens": 50, "prompt_tokens_details": details}
    body = {
        "id": f"chatcmpl-{number:029d}",
        "object": "chat.completion",
        "created": 1754425777,
        "model": "gpt-5-nano-2025-08-07",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {**usage, "total_tokens": 1050, "completion_tokens_details": details},
        "service_tier": "default",
    }
    response = {"status_code": 200, "request_id": f"req_{number:032d}", "body": body}
    return {
        "id": f"batch_req_{number:024d}",
        "custom_id": custom_id,
        "response": response,
        "error": None,
    }


def plain_finalize(folder: Path, answers: int, *, accessor: str) -> float:
    """Rows a second of a loop that writes cells into a frame; stops after `answers` of them."""
    start_s, _ = peak_mb([sys.executable, "-c", "import pandas"])
    start = time.perf_counter()
    frame = pd.read_csv(folder / "products.csv")
    for name in FIELDS:
        frame[name] = ""
    place = {product_id: index for index, product_id in enumerate(frame["product_id"])}
    read_s = time.perf_counter() - start
    start = time.perf_counter()
    written = 0
    cells = getattr(frame, accessor)
    for path in sorted((folder / "work" / "clean" / "results").glob("*.output.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if written == answers:
                break
            result = json.loads(line)
            answer = json.loads(result["response"]["body"]["choices"][0]["message"]["content"])
            index = place[result["custom_id"].rsplit("-", 1)[0]]
            for name in FIELDS:
                cells[index, name] = answer[name]
            written += 1
    loop_s = time.perf_counter() - start
    start = time.perf_counter()
    frame.to_csv(folder / "plain.csv", index=False)
    write_s = time.perf_counter() - start
    # starting, reading and writing the frame are paid once for all rows; ours has its start in it too
    return 1 / (loop_s / written + (start_s + read_s + write_s) / len(frame))


def compare_prepare(
    folder: Path, *, rows: int, plain_rows: int, repeats: int
) -> tuple[float, tuple[float, float]]:
    """Ratio of the rates, the median of runs in turn; seconds and peak of our last run."""
    ratios = []
    for _ in range(repeats):
        ours = our_prepare(folder, rows)
        start = time.perf_counter()
        plain_prepare(folder, plain_rows)
        ratios.append(rows / ours[0] * (time.perf_counter() - start) / plain_rows)
    return statistics.median(ratios), ours


def compare_finalize(folder: Path, rows: int, *, cells: int, repeats: int) -> dict[str, float]:
    """Medians of runs in turn: seconds and peak of ours, rows a second of the plain ways."""
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        write_prepared(folder, rows)
        finalize_s, mb = peak_mb([*COMMAND, "finalize"], cwd=folder)
        found["s"].append(finalize_s)
        found["mb"].append(mb)
        for how in ("loc", "at"):
            rate = plain_finalize(folder, cells, accessor=how)
            found[f"{how}_rows_per_s"].append(rate)
            found[f"{how}_ratio"].append(rows / finalize_s / rate)
    assert (folder / "work" / "clean" / "cleaned.csv").read_bytes().count(b"\n") - 1 == rows
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    arguments = parse("clean")
    quick = arguments.quick
    rows, compared, plain_rows, cells = (50_000, 1_200, 120, 400) if quick else (50_000, 2_000, 500, 1_500)
    figures: dict[str, object] = {"rows": rows}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "shop"
        write_catalogue(folder, rows, 8 if quick else 48)
        repeats = 1 if quick else 3
        prepare, ours = compare_prepare(folder, rows=compared, plain_rows=plain_rows, repeats=repeats)
        prepared_rows = compared if quick else rows
        prepare_s, prepare_mb = ours if quick else our_prepare(folder, rows)
        finalized = compare_finalize(folder, rows, cells=cells, repeats=1 if quick else 5)
    figures |= {
        "prepared_rows": prepared_rows,
        "prepare_s": prepare_s,
        "prepare_rows_per_s": prepared_rows / prepare_s,
        "finalize_s": finalized["s"],
        "finalize_rows_per_s": rows / finalized["s"],
        "plain_finalize_loc_rows_per_s": finalized["loc_rows_per_s"],
        "plain_finalize_at_rows_per_s": finalized["at_rows_per_s"],
        "peak_mb": max(prepare_mb, finalized["mb"]),
        "prepare_peak_mb": prepare_mb,
        "finalize_peak_mb": finalized["mb"],
    }
    ratios = {
        "prepare": prepare,
        "finalize": finalized["loc_ratio"],
        "finalize_at": finalized["at_ratio"],
    }
    report("clean", ratios, figures, as_json=arguments.json)


if __name__ == "__main__":
    main()
