"""`furnclip prepare`: cleaned rows and images become splits without leaks, packed in shards.

Input: `work/clean/cleaned.csv` (else the raw catalogue) and the image folder. Output: `work/shards/`,
complete when `manifest.json` is there, and `work/shards/rejected.csv` with every row that is not in them
and why. Work in progress lies in `work/cache/prepare/`.

Scan (decode what is new), find ties (who belongs together), assign (a split for each group), pack. Every
step continues where a killed run stopped. Do not trust near-duplicates to be complete: crops, mirrors and
recolored variants of one photograph are different images to it; give `paths.group_column` where the
shop knows its variants.
"""

from __future__ import annotations

from furnclip.prepare.run import CheckReport, PrepareSummary, check, prepare, spread

__all__ = ["CheckReport", "PrepareSummary", "check", "prepare", "spread"]
