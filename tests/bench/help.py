"""How long `furnclip --help` takes: figures.help_s, median of five fresh processes."""

from __future__ import annotations

import subprocess
import sys

from tests.bench.measure import median_s, parse, report


def main() -> None:
    options = parse("help")

    def show_help() -> None:
        subprocess.run([sys.executable, "-m", "furnclip", "--help"], check=True, stdout=subprocess.DEVNULL)

    show_help()  # the first call compiles byte code
    report("help", {}, {"help_s": median_s(show_help)}, as_json=options.json)


if __name__ == "__main__":
    main()
