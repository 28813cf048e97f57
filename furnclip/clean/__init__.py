"""`furnclip clean`: a messy catalogue -> clean titles and attributes, without losing a row or paying twice.

In: `products.csv` and its pictures. Out: `work/clean/cleaned.csv` and `rejected.csv`; every row is in
exactly one of them. The work is done by one of three backends: `openai` (Batch API), `live` (any
chat-completions server) or `local` (offline rules). Everything is journalled before it is done, in
`work/clean/journal.jsonl`, so each command can be killed at any moment and run again.

`pipeline` holds the commands; the other modules are its parts.
"""
