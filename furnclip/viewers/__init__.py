"""Showing an image in a terminal, by an external viewer first.

    drawing = show_image(path, cache=folder)     # bytes for the cursor's place
    console.show_bytes(drawing.data)    # empty when drawing.viewer is `none`: print the path instead

`detect` chooses among the viewers installed here, or takes the user's own command. `Viewer` runs them (no
shell, no keyboard, a timeout, bounded output) and falls back to the next and at last to half blocks.

Not to be trusted: a terminal's environment variables are inherited and can name the wrong terminal;
then the image looks wrong, and `viewer = "builtin"` or `"none"` is the way out.
"""

from furnclip.viewers.detection import TerminalEnvironment as TerminalEnvironment
from furnclip.viewers.detection import ViewerSetting as ViewerSetting
from furnclip.viewers.detection import detect as detect
from furnclip.viewers.detection import open_on_desktop as open_on_desktop
from furnclip.viewers.detection import query_terminal as query_terminal
from furnclip.viewers.running import TEST_CARD as TEST_CARD
from furnclip.viewers.running import Box as Box
from furnclip.viewers.running import Drawing as Drawing
from furnclip.viewers.running import Viewer as Viewer
from furnclip.viewers.running import Window as Window
from furnclip.viewers.running import show_image as show_image
