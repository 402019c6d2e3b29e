"""Spectra to learn from, as Parquet: DATA/train, DATA/validation and DATA/test hold schema.TRAINING, split by plate.

Plates are split whole, since the spectra of one share its sky, its calibration and its noise.
"""

from lensspark.feed import SPLITS
from lensspark.training_set.common import exit_code, split_plates
from lensspark.training_set.survey import from_survey
from lensspark.training_set.templates import from_templates

__all__ = ["SPLITS", "exit_code", "from_survey", "from_templates", "split_plates"]
