"""The first five minutes: a drawn shop, a tiny CLIP that comes with the package, and the tour.

`shop` draws any number of products (`products.csv`, `truth.csv`, `images/`), `tour` runs the real
commands on them. Good for tours, tests and teaching; its numbers say nothing about photographs.
"""

from furnclip.demo.shop import ShopOrder, write_shop
from furnclip.demo.tour import Score, Tour, take_tour

__all__ = ["Score", "ShopOrder", "Tour", "take_tour", "write_shop"]
