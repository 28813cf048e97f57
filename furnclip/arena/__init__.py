"""Blind judging: two models, one query, people decide; votes that are never lost.

Input: `work/embeddings/master_vectors.parquet`. Output: `work/arena/votes.jsonl`, and from it the
standings, a CSV file and `work/arena/report.html`.

`lineup` computes what is judged, `app` chooses the next trial, `votes` stores the votes, `session` runs in
a terminal, `standings` evaluates. `ArenaApp` is the interface for code.
"""

from furnclip.arena.app import ArenaApp as ArenaApp
from furnclip.arena.app import BrowserContest as BrowserContest
from furnclip.arena.session import vote_in_terminal as vote_in_terminal
from furnclip.arena.standings import Standings as Standings
from furnclip.arena.standings import compute_standings as compute_standings
from furnclip.arena.standings import duel_lines as duel_lines
from furnclip.arena.standings import tables as tables
from furnclip.arena.standings import write_page as write_page
from furnclip.arena.votes import VoteBook as VoteBook
from furnclip.arena.votes import export_csv as export_csv
