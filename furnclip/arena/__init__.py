"""Blind judging: two models, one query, people decide; votes that are never lost.

Input: `work/embeddings/master_vectors.parquet`. Output: `work/arena/votes.jsonl`, and from it the
standings, a CSV file and `work/arena/report.html`.

`pairs` computes the lineup, `state` chooses the next trial, `votes` stores the votes, `session` and
`screen` run in a terminal, `stats` and `page` report. `ArenaApp` is the interface for code.
"""

from furnclip.arena.app import ArenaApp, Question, require_choices
from furnclip.arena.lineup import Card, Lineup, Query
from furnclip.arena.page import write_page
from furnclip.arena.session import vote_in_terminal
from furnclip.arena.stats import Standings, compute_standings
from furnclip.arena.tables import duel_lines, tables
from furnclip.arena.votes import OUTCOMES, Vote, VoteBook, export_csv

__all__ = [
    "OUTCOMES",
    "ArenaApp",
    "Card",
    "Lineup",
    "Query",
    "Question",
    "Standings",
    "Vote",
    "VoteBook",
    "compute_standings",
    "duel_lines",
    "export_csv",
    "require_choices",
    "tables",
    "vote_in_terminal",
    "write_page",
]
