"""Showing an image in a terminal, by an external viewer first.

    plan = detect()                     # what this terminal can draw, and which viewers are installed
    drawing = show_image(path, plan, cache=folder)     # bytes for the cursor's place
    console.show_bytes(drawing.data)    # empty when drawing.viewer is `none`: print the path instead

`detect` is a pure function of its environment; it looks for kitten icat, wezterm imgcat, chafa, imgcat,
timg and viu, or takes the user's own command. `Viewer` runs them (no shell, no keyboard, a
timeout, bounded output) and falls back to the next and at last to half blocks drawn by Rich.

Not to be trusted: a terminal's environment variables are inherited and can name the wrong terminal;
then the image looks wrong, and `viewer = "builtin"` or `"none"` is the way out.
"""

from furnclip.viewers.detection import Environment, desktop_command, detect
from furnclip.viewers.probe import TerminalReply, query_terminal
from furnclip.viewers.running import Box, Drawing, Viewer, open_on_desktop
from furnclip.viewers.showing import show_image, test_card
from furnclip.viewers.template import ViewerSetting

__all__ = [
    "Box",
    "Drawing",
    "Environment",
    "TerminalReply",
    "Viewer",
    "ViewerSetting",
    "desktop_command",
    "detect",
    "open_on_desktop",
    "query_terminal",
    "show_image",
    "test_card",
]
