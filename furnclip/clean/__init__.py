"""`furnclip clean`: a messy catalogue -> clean titles and attributes, without losing a row or paying twice.

In: `products.csv` and its pictures. Out: `work/clean/cleaned.csv` and `rejected.csv`; every row is in
exactly one of them. The work is done by one of three backends: `openai` (Batch API), `live` (any
chat-completions server) or `local` (offline rules). Everything is journalled before it is done, in
`work/clean/journal.jsonl`, so each command can be killed at any moment and run again.
"""

from furnclip.clean.finalize import Summary, finalize
from furnclip.clean.ledger import Ledger, open_ledger, read_state
from furnclip.clean.plan import Prepared, Selection, prepare

__all__ = [
    "Ledger",
    "Prepared",
    "Selection",
    "Summary",
    "finalize",
    "open_ledger",
    "prepare",
    "read_state",
]
