"""Over-densities on the report page: counts, median and limit of each frame, and the groups that are flagged."""

import re

import numpy as np
import pandas as pd
from test_report import Page, card, made

from lensspark import config, report
from lensspark.report import plots
from lensspark.vetting import overdensity


def bins():
    """schema.OVERDENSITY: a bin of 60 lines, fibre 7 with 12 lines, 15 plates with far too many."""
    settings, counts = config.load().vetting, dict.fromkeys(range(12000, 12330), 3) | {12100: 60}
    per_group = pd.Series(100, index=np.arange(1, 1001))
    found = {"fiberid": pd.Series({7: 12}), "plate": pd.Series(40, index=range(100, 115)),
             "mjd": pd.Series({}, dtype=int)}
    tables = [overdensity.histogram(counts, settings, "observed")]
    tables += [overdensity.group_excess(per_group, lines, by, settings) for by, lines in found.items()]
    return pd.concat(tables, ignore_index=True)


def test_over_densities_are_shown_with_their_limit():
    rows, spectra = made(1)
    found = Page(report.render(rows, spectra, card(1), bins=bins()))
    text = re.sub(r"\s+", " ", "".join(found.text))
    assert f"{10 ** (12100.5 * 3e-4):.1f} Å: 60 lines, 3 expected" in text and text.count(" lines, 3 expected") == 1
    assert "Fibres with too many lines: 7 (12 lines, 0.012 expected, P = " in text
    assert "and 3 more." in text and "Nights with too many lines: none." in text
    classes = [value for _, name, value in found.attributes if name == "class"]
    assert classes.count("median") == classes.count("limit") == 1  # nothing was counted in the lens's frame
    assert "with too many lines" not in "".join(Page(report.render(rows, spectra, card(1))).text)
    nothing = "".join(Page(report.render([], {}, card(0), bins=bins().iloc[:0])).text)
    assert "No line is certain enough to be counted." in nothing


def test_the_limit_is_where_the_cut_begins():
    expected = np.array([1.0, 3.0, 300.0, 1.0])
    for sigma in (0.0, 4.0, 37.0):
        fewest = plots.fewest_flagged(expected, sigma)
        assert (overdensity.excess(fewest, expected) > sigma).all()
        assert (overdensity.excess(fewest - 1, expected) <= sigma).all()
    assert np.isinf(plots.fewest_flagged(expected, 1e6)).all()
    html = "".join(map(str, plots.overdensities(bins(), 1e6)))
    assert "inf" not in html and "nan" not in html
