"""The first five minutes: a bundled catalogue, a tiny CLIP, and the tour that runs every command on them.

Good for tours and tests; its numbers say nothing about photographs.
"""

from furnclip.demo.tour import take_tour as take_tour
