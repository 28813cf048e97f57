"""A text, an image or both in; ranked products out.

In: the search table that `furnclip embed` wrote (`work/index.lance`, or `search.index` on S3) and the
model that made its vectors; any other model is refused. Out: `Hit`s, nothing on the disk but the
contact sheet of a preview, `work/cache/search/preview.jpg`.

    vector    by meaning: cosine between the request and the fused product vectors
    keyword   by words: BM25 over titles and attributes, stemmed English
    hybrid    both, fused by reciprocal rank (Cormack, Clarke and Buettcher, SIGIR 2009)

Scores of one mode cannot be compared with those of another, nor with those of another model.
"""

from furnclip.search.hits import Answer as Answer
from furnclip.search.hits import Hit as Hit
from furnclip.search.hits import write_preview as write_preview
from furnclip.search.searcher import Searcher as Searcher
