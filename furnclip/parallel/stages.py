"""A command of furnclip as a process of its own, so that the memory of one is free for the next."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from furnclip.errors import Interrupted


def run_furnclip(words: Sequence[str], **options: Any) -> tuple[int, str]:
    """The exit code of `furnclip WORDS` and what it printed, where `options` of `Popen` capture that.

    It ends with this process; Ctrl-C is `Interrupted`, once it has saved its state.
    """
    with subprocess.Popen([sys.executable, "-m", "furnclip", *words], text=True, **options) as process:
        try:
            output, _ = process.communicate()
        except KeyboardInterrupt:
            process.wait()  # the terminal has sent it SIGINT too
            raise Interrupted from None
        except BaseException:  # SIGTERM or SIGHUP
            process.terminate()
            raise
    return process.returncode, output or ""
