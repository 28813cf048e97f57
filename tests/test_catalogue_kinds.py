"""Catalogues as other programs write them: one test family for each kind of trouble."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from furnclip.catalogue import uncleaned_rows
from furnclip.config import Config, load_config

HEADER = "product_id,title,image\n"


@pytest.fixture
def shop_folder(tmp_path: Path) -> Callable[..., Config]:
    """Writes a catalogue, `cleaned.csv` and `rejected.csv`; None leaves a file out."""

    def write(products: str | None, cleaned: str | None, rejected: str | None = None) -> Config:
        config_path = tmp_path / "furnclip.toml"
        config_path.touch()
        config = load_config(config_path)
        paths = config.paths
        paths.clean.mkdir(parents=True)
        files = {paths.products: products, paths.cleaned: cleaned, paths.clean / "rejected.csv": rejected}
        for path, text in files.items():
            if text is not None:
                path.write_text(HEADER + text)
        return config

    return write


@pytest.mark.parametrize(
    ("products", "cleaned", "rejected", "missing"),
    [
        ("1,a,a\n2,b,b\n3,c,c\n", "1,a,a\n", "2,b,b\n", 1),
        ("1,a,a\n2,b,b\n", "1,a,a\n2,b,b\n", None, 0),
        ("1,a,a\n1,b,b\n1,c,c\n", "1,a,a\n", "1,b,b\n", 1),  # an id that is there three times, judged twice
        ("1,a,a\n,b,b\n,c,c\n", "1,a,a\n", ",b,b\n", 1),  # rows without an id
        ("1,a,a\n2,b\n3,c\n", "1,a,a\n", "2,b,\n", 1),  # a damaged row keeps its id
        ("1,a,a\n", "1,a,a\n9,gone,z\n", "8,gone,z\n", 0),  # rows that left the catalogue do not count
        ("1,a,a\n2,b,b\n", None, None, 0),  # nothing was cleaned: the raw catalogue is read
        (None, "1,a,a\n", None, 0),
    ],
)
def test_rows_that_were_never_cleaned_are_counted(
    shop_folder: Callable[..., Config],
    products: str | None,
    cleaned: str | None,
    rejected: str | None,
    missing: int,
) -> None:
    assert uncleaned_rows(shop_folder(products, cleaned, rejected)) == missing
