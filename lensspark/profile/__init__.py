"""The line's profile: fits of a skew normal and its rivals to the residual about a hit."""

from lensspark.profile.cutout import Cutouts, cut
from lensspark.profile.fits import Fits, curves, fit_lines
from lensspark.profile.measures import measures

__all__ = ["Cutouts", "Fits", "curves", "cut", "fit_lines", "measures"]
