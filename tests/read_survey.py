"""Reads the first files of a survey tree, and nothing else: what a profiler or a counter of instructions is held to.

    valgrind --tool=callgrind python tests/read_survey.py ROOT 2000
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lensspark.boss import read_unit, survey_files  # noqa: E402

if __name__ == "__main__":
    root, n = sys.argv[1], int(sys.argv[2])
    units = survey_files(root).units[:n]
    good = sum(len(read_unit(unit, ("flux", "ivar", "and_mask"), (3800.0, 5000.0))) for unit in units)
    print(f"{len(units)} files, {good} good spectra")
