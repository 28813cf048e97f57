"""A shop with two models, and `furnclip serve` as a real process that answers for it."""

from __future__ import annotations

import csv
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq

from furnclip.config import load_config
from furnclip.vectors.index import index_location, write_index
from furnclip.vectors.parquet import provenance_of
from tests.conftest import run_here
from tests.drawn_shop import write_shop
from tests.test_embed import add_run

FRACTIONS = {"FURNCLIP_PREPARE__TRAIN_FRACTION": "0.2", "FURNCLIP_PREPARE__VALIDATION_FRACTION": "0.1"}
NASTY = """<script>document.title="ran"</script><img src=x onerror="document.title='ran'"> "quoted' & chair"""


def make_shop(folder: Path, model: Path, *, run: bool = False) -> Path:
    """24 products with shards and a table; one title is HTML. With `run` a fine-tuned model too."""
    shop = write_shop(folder, products=24, model=model)
    run_here("clean", "run", "--backend", "local", cwd=shop).ok()
    cleaned = shop / "work/clean/cleaned.csv"
    with cleaned.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows[3]["title"] = rows[3]["clean_title"] = NASTY
    with cleaned.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    run_here("prepare", cwd=shop, env=FRACTIONS).ok()
    if run:
        add_run(shop, "tuned", seed=1)
    run_here("embed", cwd=shop).ok()
    return shop


@dataclass
class Service:
    """A running service. `log` is what it wrote on stderr so far."""

    process: subprocess.Popen[str]
    address: str
    log: list[str] = field(default_factory=list)

    def ask(
        self, path: str, *, method: str = "GET", body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Status, body (JSON as objects) and headers; the path goes as it is, with its dots."""
        connection = self.connect()
        try:
            connection.request(method, path, body, dict(headers or {}))
            return answer_of(connection)
        finally:
            connection.close()

    def connect(self) -> http.client.HTTPConnection:
        where = urlsplit(self.address)
        return http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def answer_of(connection: http.client.HTTPConnection) -> tuple[int, Any, Mapping[str, str]]:
    response = connection.getresponse()
    data = response.read()
    headers = {name.lower(): value for name, value in response.getheaders()}
    is_json = headers.get("content-type", "").startswith("application/json")
    return response.status, json.loads(data) if is_json else data, headers


def form(fields: Mapping[str, str], image: bytes | None = None) -> tuple[bytes, dict[str, str]]:
    """A multipart body and its header."""
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    if image is not None:
        head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
        parts.append(head + image + b"\r\n")
    return b"".join(parts) + b"--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


@contextmanager
def serving(shop: Path, *flags: str, **settings: str) -> Iterator[Service]:
    """`furnclip serve FLAGS` in the shop; `settings` of the section, such as `timeout_s="2"`."""
    environment = {f"FURNCLIP_SERVE__{name.upper()}": value for name, value in settings.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "furnclip", "serve", "--port", "0", "--json", *flags],
        cwd=shop,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    log: list[str] = []
    reader = threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True)
    reader.start()
    try:
        line = process.stdout.readline()
        if not line:
            process.wait(60)
            reader.join(10)
            raise AssertionError("".join(log))
        yield Service(process, json.loads(line)["address"], log)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
        reader.join(10)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def replace_table(shop: Path, mark: str) -> None:
    """A new table of the same vectors, in which every title begins with `mark`."""
    config = load_config(shop / "furnclip.toml")
    table = pq.read_table(config.paths.vectors)
    provenance = provenance_of(table.schema.metadata, where="test")
    for name in ("title", "clean_title"):
        place = table.schema.get_field_index(name)
        titles = [f"{mark} {title}" for title in table.column(name).to_pylist()]
        table = table.set_column(place, table.schema.field(name), [titles])
    marked = provenance.model_copy(update={"key": f"{mark}-key"}).model_dump_json().encode()
    path = shop / f"{mark}.parquet"
    pq.write_table(table.replace_schema_metadata({b"furnclip": marked}), path)
    write_index(index_location(config), path, config.search)
