"""Vetting: what is known about each hit beside its score, and the cuts made on it.

`measuring` reads hits, their neighbours and repeats again and measures them (once, on the workers); `census` counts
what must be known of every spectrum; `evidence` gathers all that follows from the ledger's own columns (over-densities,
false-alarm rates, known lenses, rank), anew for every re-cut; `cuts` flags. Nothing is ever dropped.
"""

from lensspark.vetting.cuts import CUTS, STAGES, Cut, Veto, funnel, funnel_text, vet

__all__ = ["CUTS", "STAGES", "Cut", "Veto", "funnel", "funnel_text", "vet"]
