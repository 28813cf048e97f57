"""`furnclip serve`: the search as a REST service and as a page, and blind judging beside them.

    guard      who may ask, how much and how long; metrics and the access log
    asking     the parameters of each address, and the OpenAPI text
    app        the addresses for programs
    page       the page for people, drawn on this side: it works without JavaScript
    contest    blind judging in a browser
    tables     the table that is served now, and the next one
    server     the socket, signals, and the end

It asks a `Searcher` and reads the shards; it writes nothing but, where that is wished, the log of queries.
"""

from furnclip.search.service.server import serve as serve
