"""Showing a picture in a terminal, whatever terminal it is.

    plan = detect()                     # what this terminal can do, which tools there are, and why
    for line in plan.lines(): ...       # the explanation that `furnclip doctor` prints
    drawing = show_image(path, plan, cache=folder)     # bytes for the cursor's place
    console.show_bytes(drawing.data)    # empty when drawing.viewer is `none`: print the path instead

`detect` is a pure function of its surroundings; `Viewer` runs the tools (no shell, no keyboard, a
time limit, captured output) and falls through to the next and at last to half blocks. Whether a
command that came with somebody else's folder may run is decided in `config`. Facts about the tools:
man pages of chafa, timg, viu and kitty's icat; sw.kovidgoyal.net/kitty/graphics-protocol.

Not to be trusted: a terminal's environment variables are inherited and can name the wrong terminal;
then the picture looks wrong, and `viewer = "builtin"` or `"none"` is the way out.
"""

from furnclip.viewers.blocks import half_blocks
from furnclip.viewers.desktop import desktop_command, open_on_desktop
from furnclip.viewers.detection import Candidate, Plan, Surroundings, detect
from furnclip.viewers.probe import Answer, ask_terminal
from furnclip.viewers.running import Box, Drawing, Viewer
from furnclip.viewers.showing import preview_copy, show_image, test_card
from furnclip.viewers.template import Setting, fill, parse_template

__all__ = [
    "Answer",
    "Box",
    "Candidate",
    "Drawing",
    "Plan",
    "Setting",
    "Surroundings",
    "Viewer",
    "ask_terminal",
    "desktop_command",
    "detect",
    "fill",
    "half_blocks",
    "open_on_desktop",
    "parse_template",
    "preview_copy",
    "show_image",
    "test_card",
]
