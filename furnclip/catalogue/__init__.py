"""Reading product catalogues as shops write them, a row at a time.

Input: a catalogue as CSV, TSV, JSON, JSON lines, XML (each may be gzipped) or Parquet, told by its content;
or `work/clean/cleaned.csv`. Output: a stream of `Product` and `Rejection`; no row is dropped without one of
the two. `content_hash` decides everywhere in furnclip whether something is up to date.
"""

from furnclip.catalogue.columns import Column as Column
from furnclip.catalogue.columns import ColumnTypes as ColumnTypes
from furnclip.catalogue.columns import says_nothing as says_nothing
from furnclip.catalogue.delimited import sheet_text as sheet_text
from furnclip.catalogue.delimited import write_row as write_row
from furnclip.catalogue.formats import Recognition as Recognition
from furnclip.catalogue.formats import image_names as image_names
from furnclip.catalogue.formats import image_table as image_table
from furnclip.catalogue.formats import recognize as recognize
from furnclip.catalogue.products import Product as Product
from furnclip.catalogue.products import Rejection as Rejection
from furnclip.catalogue.products import catalogue_path as catalogue_path
from furnclip.catalogue.products import no_rows as no_rows
from furnclip.catalogue.products import nothing_cleaned as nothing_cleaned
from furnclip.catalogue.products import read_products as read_products
from furnclip.catalogue.products import uncleaned_rows as uncleaned_rows
from furnclip.catalogue.rows import ATTRIBUTES as ATTRIBUTES
from furnclip.catalogue.rows import CLEAN_COLUMNS as CLEAN_COLUMNS
from furnclip.catalogue.rows import REJECT_COLUMNS as REJECT_COLUMNS
from furnclip.catalogue.rows import UNKNOWN as UNKNOWN
from furnclip.catalogue.rows import read_records as read_records
from furnclip.catalogue.rows import renamed_column as renamed_column
from furnclip.catalogue.text import content_hash as content_hash
from furnclip.catalogue.text import normalized_title as normalized_title
