"""A renderer of furniture: any number of drawn products with messy titles and known attributes.

`python -m examples.drawn_shop OUT --products 50000` writes a shop; README.md has the options. For tests,
benchmarks and teaching; results on drawings say nothing about photographs.
"""

from .shop import ShopOrder, write_shop

__all__ = ["ShopOrder", "write_shop"]
