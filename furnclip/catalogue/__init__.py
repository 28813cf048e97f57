"""Reading product catalogues as shops write them, a row at a time.

Input: a catalogue as CSV, TSV, JSON, JSON lines (each may be gzipped) or Parquet, told by its content; or
`work/clean/cleaned.csv`.
Output: a stream of `Product` and `Rejection`; no row is dropped without one of the two.

Rules that a row is judged by:

* UTF-8, UTF-16 or UTF-32, else the encoding that fits the file best, with a warning; `,` `;` tab or `|`
  between cells. A line that does not fit the encoding of the others rejects its row.
* A quote that is not closed is text; its line is a row where it looks like the other rows, else rejected.
* An id has to be there, printable, and new: the first row with an id keeps it, later ones are rejected.
* A row needs as many cells as the header; a cell over `MAX_CELL_CHARS` is refused.
* Images lie inside the image folder: no `..` and no absolute path that leads out of it; links may, if the
  folder is the user's own.

`content_hash` decides everywhere in furnclip whether something is up to date.
"""

from furnclip.catalogue.image_names import find_files, tell_near_matches
from furnclip.catalogue.products import (
    Product,
    Rejection,
    catalogue_path,
    find_images,
    no_rows,
    nothing_cleaned,
    read_products,
    uncleaned_rows,
)
from furnclip.catalogue.rows import (
    ATTRIBUTES,
    CLEAN_COLUMNS,
    REJECT_COLUMNS,
    SheetWriter,
    read_records,
    read_rows,
    renamed_column,
    sheet_text,
)
from furnclip.catalogue.text import content_hash, normalized_title

__all__ = [
    "ATTRIBUTES",
    "CLEAN_COLUMNS",
    "REJECT_COLUMNS",
    "Product",
    "Rejection",
    "SheetWriter",
    "catalogue_path",
    "content_hash",
    "find_files",
    "find_images",
    "no_rows",
    "normalized_title",
    "nothing_cleaned",
    "read_products",
    "read_records",
    "read_rows",
    "renamed_column",
    "sheet_text",
    "tell_near_matches",
    "uncleaned_rows",
]
