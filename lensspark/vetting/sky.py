"""Positions on the sky: pairs within a radius, from trees of unit vectors, at the poles and at 0 h as anywhere else."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy.spatial import KDTree

ARCSEC = math.radians(1 / 3600)


def pairs(few: pd.DataFrame, many: pd.DataFrame, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(i, j, separation in arcsec) of each row i of `few` and row j of `many` within `radius` arcsec of each other.

    Both have `ra`, `dec` in degrees; null, NaN and what is no position match nothing.
    """
    (one, i), (other, j) = _tree(few), _tree(many)
    found = one.sparse_distance_matrix(other, 2 * math.sin(radius * ARCSEC / 2), output_type="ndarray")
    return i[found["i"]], j[found["j"]], 2 * np.arcsin(np.minimum(found["v"] / 2, 1)) / ARCSEC


def _tree(places: pd.DataFrame) -> tuple[KDTree, np.ndarray]:
    """The known positions among `places`, and their rows."""
    ra, dec = places["ra"].to_numpy(float), places["dec"].to_numpy(float)
    known = np.flatnonzero((np.abs(ra) <= 720) & (np.abs(dec) <= 90))
    a, d = np.radians(ra[known]), np.radians(dec[known])
    return KDTree(np.column_stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])), known
