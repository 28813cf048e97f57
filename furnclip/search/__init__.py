"""A text, an image or both in; ranked products out.

In: the search table that `furnclip embed` wrote (`work/index.lance`, or `search.index` on S3) and the
model that made its vectors; any other model is refused. Out: `Hit`s, nothing on the disk but the
contact sheet of a preview, `work/cache/search/preview.jpg`.

    vector    by meaning: cosine of a text to the fused product vectors, of an image to those of the images
    keyword   by words: BM25 over every text of a product, weighed by field
    hybrid    both on one scale, weighed by what they are worth on this catalogue and for this query

Scores of one mode cannot be compared with those of another, nor with those of another model.
"""

from furnclip.search.searcher import Searcher as Searcher
from furnclip.search.table import Answer as Answer
from furnclip.search.table import Hit as Hit
from furnclip.search.table import write_preview as write_preview
