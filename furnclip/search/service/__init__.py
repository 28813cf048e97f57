"""`furnclip serve`: the search as a REST service and as a page, and blind judging beside them.

It asks a `Searcher` and reads the shards; it writes nothing but, where that is wished, the log of queries.
"""

from furnclip.search.service.server import serve as serve
