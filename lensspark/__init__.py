"""lensspark: a distributed search of survey spectra for strongly lensed Lyman-alpha emitters."""

__version__ = "0.1.0"
