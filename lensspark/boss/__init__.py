"""BOSS, eBOSS and SDSS-I/II spectra: which files a survey tree holds, and their contents as arrays.

`survey_files` lists a tree, `join_catalogues` adds what survey-wide catalogues know, `read_unit` reads one file,
`read_exposures` what single exposures it has.
"""

from lensspark.boss.catalogue import join_catalogues
from lensspark.boss.exposures import Exposure, full_files, read_exposures
from lensspark.boss.listing import LAYOUTS, Key, Survey, Unit, absolute, only, survey_files
from lensspark.boss.read import PLANES, Spectra, read_unit
from lensspark.boss.stream import UNREADABLE, Fault

__all__ = ["LAYOUTS", "PLANES", "UNREADABLE", "Exposure", "Fault", "Key", "Spectra", "Survey", "Unit", "absolute",
           "full_files", "join_catalogues", "only", "read_exposures", "read_unit", "survey_files"]
