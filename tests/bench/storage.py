"""Shards and small files to a local S3 server and back: furnclip against `aws s3 sync`.

Both are run as they are used, as a process of their own with their default settings, and have the same
server, the same files and an empty bucket. 200 files of 5 MB and 2,000 files of 20 KB.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.bench.measure import parse, report
from tests.s3_server import CREDENTIALS, create_bucket, s3_server

BUCKET = "bench"
OURS = "import sys; from furnclip import S3Manager; m = S3Manager('bench', endpoint_url=sys.argv[1]); "
Run = Callable[[str], float]


def main() -> None:
    """Measure and print."""
    options = parse("storage")
    scale, repeats = (4, 1) if options.quick else (1, 3)  # smaller ones only measure the start-up
    os.environ.update(CREDENTIALS, AWS_EC2_METADATA_DISABLED="true")
    ratios: dict[str, float] = {}
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder, s3_server() as server:
        for name, count, size_bytes in (("shards", 200, 5 * 2**20), ("files", 2000, 20 * 2**10)):
            local = draw_files(Path(folder) / name, count // scale, size_bytes)
            seconds = measure(local, server, repeats)
            for way in ("up", "down"):
                ours, rival = seconds["furnclip", way], seconds["aws", way]
                ratios[f"{name}_{way}"] = rival / ours
                figures |= {f"{name}_{way}_s": ours, f"{name}_{way}_aws_s": rival}
            shutil.rmtree(local)
    report("storage", ratios, figures, as_json=options.json)


def draw_files(folder: Path, count: int, size_bytes: int) -> Path:
    """`count` files of random bytes, all different."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:06}.tar").write_bytes(os.urandom(size_bytes))
    return folder


def measure(local: Path, server: str, repeats: int) -> dict[tuple[str, str], float]:
    """Median seconds of each program and way; the programs take turns."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for number in range(repeats):
        programs = [("furnclip", furnclip_commands), ("aws", aws_commands)]
        for program, commands in programs if number % 2 else reversed(programs):
            empty(server)
            back = local.with_name("back")
            for way, command in zip(("up", "down"), commands(local, server, back), strict=True):
                start = time.perf_counter()
                subprocess.run(command, check=True)
                seconds.setdefault((program, way), []).append(time.perf_counter() - start)
            check_and_remove(local, back)
    return {key: statistics.median(values) for key, values in seconds.items()}


def furnclip_commands(local: Path, server: str, back: Path) -> list[list[str]]:
    up = f"{OURS} m.upload_dataset({str(local)!r}, 'p')"
    down = f"{OURS} m.download_dataset('p', {str(back)!r})"
    return [[sys.executable, "-c", code, server] for code in (up, down)]


def aws_commands(local: Path, server: str, back: Path) -> list[list[str]]:
    beside = Path(sys.executable).parent  # where `.[bench]` puts it
    program = shutil.which("aws", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        sys.exit('the AWS CLI is not installed: pip install -e ".[bench]"')
    sync = [program, "--endpoint-url", server, "s3", "sync", "--only-show-errors"]
    return [[*sync, str(local), f"s3://{BUCKET}/p"], [*sync, f"s3://{BUCKET}/p", str(back)]]


def empty(server: str) -> None:
    urllib.request.urlopen(f"{server}/moto-api/reset", data=b"").close()
    create_bucket(server, BUCKET)


def check_and_remove(local: Path, back: Path) -> None:
    """A transfer that loses a byte is no transfer."""
    for path in local.iterdir():
        assert path.read_bytes() == (back / path.name).read_bytes()
    shutil.rmtree(back)


if __name__ == "__main__":
    main()
