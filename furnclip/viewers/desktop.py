"""Opening a picture in a desktop window, only when a person asks for it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from furnclip.viewers.detection import Surroundings
from furnclip.viewers.running import ViewerFailed, windows_path

_EARLY_EXIT_S = 0.3
# Knows only Windows paths, and exits with 1 even when it worked (github.com/microsoft/WSL issue 6565).
_EXPLORER = "explorer.exe"
_X11 = ("xdg-open", "gio", "feh", "imv", "eog", "gwenview", "nsxiv")
_ARGUMENTS = {"gio": ("open",), "feh": ("--scale-down", "--auto-zoom", "-g", "900x900")}


def desktop_command(surroundings: Surroundings | None = None) -> tuple[str, ...]:
    """The command that opens a picture in a window here, to which the path is added; empty: none."""
    around = surroundings or Surroundings.here()
    env = around.env
    has_display = bool(env.get("DISPLAY") or env.get("WAYLAND_DISPLAY"))
    if env.get("CI") or ((env.get("SSH_CONNECTION") or env.get("SSH_TTY")) and not has_display):
        return ()
    if around.platform == "darwin":
        return ("open",)
    if env.get("WSL_DISTRO_NAME") or env.get("WSL_INTEROP"):
        tools: tuple[str, ...] = ("wslview", _EXPLORER)
    else:
        tools = _X11 if has_display else ()
    found = next((tool for tool in tools if around.which(tool)), "")
    return (found, *_ARGUMENTS.get(found, ())) if found else ()


def open_on_desktop(picture: Path, command: tuple[str, ...]) -> bool:
    """Start the window's program apart from us; False when it failed at once."""
    try:
        path = windows_path(picture) if command[0] == _EXPLORER else str(picture.absolute())
        window = subprocess.Popen(
            [*command, path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, ViewerFailed):
        return False
    until = time.monotonic() + _EARLY_EXIT_S
    while time.monotonic() < until:
        if window.poll() is not None:
            return window.returncode == 0 or command[0] == _EXPLORER
        time.sleep(0.02)
    window.returncode = 0  # it lives on without us; Python need not warn that nobody waited for it
    return True
