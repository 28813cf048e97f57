"""`furnclip eval`: did it get better? With intervals, paired tests and images.

In: a split of `work/shards/` and models (the base, runs under `work/runs/`). Out: `work/eval/report.json`
and `work/eval/report.html`, one self-contained page.

Every query is ranked against the whole gallery of the split, a product that shares a group or a
caption with the right one is right as well, and ties count against the model. The gallery is small
next to a shop's whole catalogue, so the numbers rank models; they do not predict what a shopper sees.
"""

from furnclip.evaluate.report import comparison_lines, summary_table
from furnclip.evaluate.run import Evaluation, evaluate

__all__ = ["Evaluation", "comparison_lines", "evaluate", "summary_table"]
