"""A mock survey in the likeness of BOSS: galaxies, sky, noise, lines, and files in the real layout."""

from lensspark.mock.survey import observe_plate

__all__ = ["observe_plate"]
