"""What the page shows of one candidate: numbers as text, verdicts of cuts, identities, and arrays packed for JSON."""

from __future__ import annotations

import base64
import math
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lensspark import identity, lines, schema

MAX_TEXT = 200  # characters of a text from outside that the page shows

UNITS = {
    schema.FLUX_UNIT: "×10⁻¹⁷ erg s⁻¹ cm⁻² Å⁻¹", schema.LINE_FLUX_UNIT: "×10⁻¹⁷ erg s⁻¹ cm⁻²", "Angstrom": "Å",
    "km / s": "km s⁻¹", "arcsec": "″", "deg": "°", "pix": "px",
}
DECIMALS = {
    "ra": 5, "dec": 5, "z_lens": 4, "z_source": 4, "p_line": 4, "line_wave": 1, "line_snr": 1, "line_flux": 1,
    "line_peak": 2, "line_mask_fraction": 2, "mag_i": 2, "sn_median": 1, "vdisp": 0, "alpha": 2, "p_skew_positive": 3,
    "theta_e": 2, "q_value": 3, "alpha_low": 2, "alpha_high": 2, "profile_chi2": 1, "profile_dof": 0,
    "image_separation": 2, "overdensity_lens": 1, "overdensity_observed": 1, "repeat_snr": 1, "repeat_tension": 1,
    "neighbour_ratio": 1, "followup": 3, "null_wave": 1, "null_snr": 1, "null_p_line": 4,
}
_DECIMALS_BY_START = {"p_": 3, "sn_": 1, "dchi2_": 1}
LABELS = {
    "rank": "#", "p_line": "p", "line_wave": "λ line", "line_snr": "S/N", "line_flux": "line flux", "line_peak": "peak",
    "z_lens": "z lens", "z_source": "z source", "mag_i": "i", "fiberid": "fibre", "theta_e": "θ_E", "vdisp": "σ_v",
    "line_mask_fraction": "masked about line", "n_line_hits": "peaks in spectrum", "sn_median": "S/N per px",
    "dchi2_skew": "Δχ² Gaussian", "dchi2_oii": "Δχ² [O II] doublet", "dchi2_double": "Δχ² two peaks",
    "dchi2_spike": "Δχ² wide line to spike", "p_skew_positive": "P(α > 0)", "alpha": "α", "alpha_low": "α from",
    "alpha_high": "to", "profile_flux": "flux", "profile_wave": "peak at", "profile_width": "rms width",
    "profile_chi2": "χ²", "profile_dof": "of", "line_width_over_lsf": "width / LSF", "sn_oii_veto": "S/N if [O II]",
    "p_other": "P(other)", "p_lens": "P(galaxy's own)", "p_sky": "P(sky)", "p_cosmic": "P(cosmic ray)",
    "null_p_line": "p of the null", "null_wave": "λ of the null", "null_snr": "S/N of the null", "sky_chi2": "sky χ²",
    "z_noqso": "z without quasars", "zwarning_noqso": "zwarning without quasars",
    "p_multiple": "P(multiple images)", "exposure_tension": "one exposure above the rest, σ",
    "exposure_rest_snr": "S/N in the rest", "exposure_chi2": "χ² of exposures", "n_exposures": "exposures",
    "grade": "earlier grade", "comment": "earlier comment",
}
# Column -> the column of its error; neither needs to exist.
ERRORS = {name.removesuffix("_err"): name for name in schema.LEDGER.names if name.endswith("_err")}
COLUMNS = {column.name: column for column in schema.CANDIDATES.columns}

_LINE = ("p_line", "line_wave", "line_snr", "line_flux", "line_peak", "line_mask_fraction", "n_line_hits", "q_value")
_GALAXY = ("z_lens", "z", "z_noqso", "zwarning", "zwarning_noqso", "class", "subclass", "objtype", "mag_i", "sn_median",
           "vdisp", "ra", "dec", "known_lens")
_OTHER = ("null_p_line", "null_wave", "null_snr", "plate_quality", "sky_chi2")  # beside what vetting measures
_PROFILE = ("alpha", "alpha_low", "alpha_high", "p_skew_positive", "dchi2_skew")
_IDENTITY = ("identity", "p_other", "sn_oii_veto", *(f"{a}_{name}" for name in identity.NAMES for a in ("p", "sn")))
_LENS = ("z_source", "theta_e", "p_multiple", "image_separation")
_PROFILE_STARTS = ("profile_", "dchi2_", "line_width_")

# Lines that a background source could show, rest frame: name on the page, vacuum Angstrom. Of a multiplet all members.
SOURCE_LINES = (
    ("Lyα", lines.LYA), ("N V", lines.NV), ("C IV", lines.CIV), ("He II", lines.HEII_1640), ("C III]", lines.CIII),
    ("Mg II", lines.MGII[0]), ("Mg II", lines.MGII[1]), ("[Ne V]", lines.NEV[1]), ("[O II]", sum(lines.OII) / 2),
    ("[Ne III]", lines.NEIII), ("Hδ", lines.HDELTA), ("Hγ", lines.HGAMMA), ("Hβ", lines.HBETA),
    ("[O III]", lines.OIII[0]), ("[O III]", lines.OIII[1]), ("Hα", lines.HALPHA), ("[N II]", lines.NII[1]),
    ("[S II]", lines.SII[0]), ("[S II]", lines.SII[1]),
)
_OII, _OIII = sum(lines.OII) / 2, lines.OIII[1]
# Identities as measure.py names them: name, label, the line that each takes the hit for, the lines worth a panel.
IDENTITIES = (
    ("lya", "Lyα", lines.LYA, (lines.NV, lines.CIV, lines.HEII_1640, lines.CIII)),
    ("civ", "C IV", lines.CIV, (lines.LYA, lines.HEII_1640, lines.CIII, lines.MGII[0])),
    ("ciii", "C III]", lines.CIII, (lines.CIV, lines.HEII_1640, lines.MGII[0], _OII)),
    ("mgii", "Mg II", lines.MGII[0], (_OII, lines.HBETA, _OIII)),
    ("oii", "[O II]", _OII, (lines.HBETA, _OIII, lines.HALPHA)),
    ("hbeta", "Hβ", lines.HBETA, (_OII, _OIII, lines.HALPHA)),
    ("oiii", "[O III]", _OIII, (_OII, lines.HBETA, lines.HALPHA)),
)
LABELS |= {f"{start}_{name}": text.format(label) for name, label, *_ in IDENTITIES
           for start, text in (("p", "P({})"), ("sn", "S/N if {}"))}
LENS_LINES = (("[Ne V]", lines.NEV[0]), ("[Ne V]", lines.NEV[1]), ("[O II]", sum(lines.OII) / 2),
              ("[Ne III]", lines.NEIII), ("Ca K", lines.CAII_K), ("Ca H", lines.CAII_H), ("Mg II", lines.MGII[0]),
              ("Mg II", lines.MGII[1]), ("Hδ", lines.HDELTA), ("Hγ", lines.HGAMMA), ("Hβ", lines.HBETA),
              ("[O III]", lines.OIII[0]), ("[O III]", lines.OIII[1]), ("Hα", lines.HALPHA))
# The night sky that could pass for a line, and redwards of it the brightest lines; vacuum (NIST).
SKY_LINES = (*(("Hg" if wave in lines.SKY_HG else "sky", wave) for wave in lines.NIGHT_SKY), ("Hg", 5462.3),
             ("[O I]", 5578.9), ("Na", 5891.6), ("[O I]", 6302.0))
RED_SKY = 5300.0  # Angstrom; redwards the overview marks all of them, bluewards those that the search masks


def clean(text: str, longest: int = MAX_TEXT) -> str:
    """`text` without control and direction characters, at most `longest`: safe to look at, not only to parse."""
    shown = "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in text[: longest + 1])
    return shown if len(shown) <= longest else shown[:longest] + "…"


def heading(name: str) -> dict[str, str]:
    """Label, unit, explanation and type of a column, for tables and dossiers."""
    column = COLUMNS[name]
    unit = UNITS.get(column.unit, column.unit)
    title = f"{name}: {column.description} [{unit}]" if unit else f"{name}: {column.description}"
    return {"name": name, "label": LABELS.get(name, name.replace("_", " ")), "title": title, "type": column.type}


def group_of(name: str) -> str:
    """The dossier's group of a column; "Evidence" takes what is in no other."""
    for group, names in (("Line", _LINE), ("Galaxy", _GALAXY), ("Profile", _PROFILE), ("Identity", _IDENTITY),
                         ("Lens", _LENS)):
        if name in names:
            return group
    return "Profile" if name.startswith(_PROFILE_STARTS) else "Evidence"


def field_names() -> list[str]:
    """The columns that a dossier prints, grouped: line, galaxy, all that is measured; errors stand beside values."""
    vetted = [column.name for column in schema.VETTING if column.name not in ERRORS.values()]
    groups: dict[str, list[str]] = {name: [] for name in ("Line", "Profile", "Identity", "Lens", "Evidence", "Galaxy")}
    for name in dict.fromkeys((*_LINE, *vetted, *_OTHER, *_GALAXY)):
        if name in COLUMNS:
            groups[group_of(name)].append(name)
    return [name for names in groups.values() for name in names]


def fields() -> list[dict[str, str]]:
    return [{**heading(name), "unit": UNITS.get(COLUMNS[name].unit, ""), "group": group_of(name)}
            for name in field_names()]


def number(value: Any, name: str) -> str:
    """A value as text; numbers with the column's decimals, else 4 significant digits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return clean(str(value))
    if isinstance(value, int):
        return str(value)
    places = DECIMALS.get(name, next((n for s, n in _DECIMALS_BY_START.items() if name.startswith(s)), None))
    return f"{value:.4g}" if places is None else f"{value:.{places}f}"


def with_error(value: float, error: float) -> str:
    """`value ± error`, both to the second significant digit of the error, six decimals at most."""
    if not (math.isfinite(error) and error > 0):
        return f"{value:.4g}"
    places = min(max(1 - math.floor(math.log10(error)), 0), 6)
    return f"{value:.{places}f} ± {error:.{places}f}"


def texts(row: Mapping[str, Any], names: Iterable[str]) -> list[str | None]:
    """The row's values as the page prints them, errors included; None where there is no value."""
    found: list[str | None] = []
    for name in names:
        value, error = row[name], row.get(ERRORS.get(name, ""))
        if value is None or value == "":
            found.append(None)
        elif error is not None and isinstance(value, float):
            found.append(with_error(value, error))
        else:
            found.append(number(value, name))
    return found


def verdicts(row: Mapping[str, Any], cuts: Iterable[Mapping[str, Any]]) -> list[tuple[int, str | None]]:
    """(passed, measured value or None) of each of the run card's cuts."""
    from lensspark import vetting  # loads pyspark, which a page alone does not need

    found = []
    by_name = {cut.name: cut for cut in vetting.CUTS}
    for cut in cuts:
        known = by_name.get(cut["name"])
        bit = int(known.bit) if known else 0
        column = (known.shown or next(iter(known.columns), None)) if known else None
        value = row.get(column)
        found.append((int(not (row["veto"] or 0) & bit), None if value is None else number(value, column)))
    return found


def identity_strips(line_wave: float | None, z_lens: float | None, row: Mapping[str, Any],
               measured: Mapping[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """One entry per strip of the overview: the galaxy, each identity that the line could have, the night sky.

    `measured`: "identity/line" -> (wavelength in Angstrom, S/N), as measure.companions gives it.
    """
    strips = []
    if z_lens is not None:
        strips.append({"id": "lens", "kind": "lens", "label": "galaxy", "note": f"z {z_lens:.3f}",
                       "lines": [{"name": name, "wave": round(rest * (1 + z_lens), 2)} for name, rest in LENS_LINES]})
    for name, label, rest, telling in IDENTITIES if line_wave is not None else ():
        z = line_wave / rest - 1
        if z <= 0:
            continue
        probability = row.get(f"p_{name}")
        note = f"z {z:.3f}" if probability is None else f"z {z:.3f} · {100 * probability:.0f} %"
        expected = [_expected(name, line, at * (1 + z), at == rest, at in telling, measured)
                    for line, at in SOURCE_LINES]
        strips.append({"id": name, "kind": "source", "label": label, "note": note, "lines": expected})
    strips.append({"id": "sky", "kind": "sky", "label": "night sky", "note": "",
                   "lines": [{"name": name, "wave": wave} for name, wave in SKY_LINES]})
    return strips


def _expected(identity: str, name: str, wave: float, self: bool, panel: bool,
              measured: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "wave": round(wave, 2)}
    if self:
        entry["self"] = 1
    if panel:
        entry["panel"] = 1
    snr = [snr for key, (at, snr) in measured.items()
           if key.partition("/")[0] == identity and abs(at / wave - 1) < 1.5e-3 and snr == snr]
    if snr and not self:
        entry["snr"] = round(max(snr), 1)
    return entry


def half(values: Any) -> str:
    """Base64 of little-endian half floats: 3 digits, +-60,000; NaN stays."""
    return base64.b64encode(np.clip(np.asarray(values, dtype="f8"), -6e4, 6e4).astype("<f2").tobytes()).decode()


def sigma_codes(sigma: Any) -> str:
    """Base64 of one byte per error, logarithmic in steps of 6 % from 1e-3 on; 0 where there is no finite error."""
    sigma = np.asarray(sigma, dtype="f8")
    good = np.isfinite(sigma) & (sigma > 0)
    code = np.rint(12 * np.log2(np.where(good, sigma, 1) / 1e-3)) + 1
    return base64.b64encode(np.where(good, np.clip(code, 1, 255), 0).astype("u1").tobytes()).decode()


def grid(wave: Any) -> list[float]:
    """[log10 of the first wavelength, step] of a logarithmic grid."""
    ends = np.log10([wave[0], wave[-1]])
    return [round(float(ends[0]), 9), round(float(ends[1] - ends[0]) / max(len(wave) - 1, 1), 12)]


def pack(spectrum: Mapping[str, Any]) -> dict[str, Any]:
    """A spectrum for the page: flux as halves, errors as codes, the model at every second pixel."""
    packed = {"grid": grid(spectrum["wave"]), "flux": half(spectrum["flux"]), "sigma": sigma_codes(spectrum["sigma"])}
    model = np.asarray(spectrum.get("model", ()), dtype="f8")
    if np.isfinite(model).any():
        packed["model"] = half(model[::2])
    return packed


def pack_fit(curves: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The line fit (measure.line_curves) for the page, with each rival's chi2 above the skew normal's."""
    names = [name for name in ("residual", "sigma", "skew", "gauss", "oii", "double") if name in curves]
    rivals = {"gauss": "dchi2_skew", "oii": "dchi2_oii", "double": "dchi2_double"}
    return {"grid": grid(curves["wave"]), "curves": {name: half(curves[name]) for name in names},
            "dchi2": {name: row.get(column) for name, column in rivals.items()}}


def payload(row: Mapping[str, Any], spectrum: Mapping[str, Any] | None, cuts: Iterable[Mapping[str, Any]]
            ) -> dict[str, Any]:
    """A dossier's JSON. `row`: schema.CANDIDATES' columns, None where null; `spectrum`: see page.write_report."""
    line, z_lens = row["line_wave"], row["z_lens"]
    data: dict[str, Any] = {"line": line, "texts": texts(row, field_names()), "verdicts": verdicts(row, cuts)}
    if spectrum is None or not np.isfinite(np.asarray(spectrum["sigma"], dtype="f8")).any():
        return data
    data["lens"] = [] if z_lens is None else [round(rest * (1 + z_lens), 2) for _, rest in LENS_LINES]
    data["identities"] = identity_strips(line, z_lens, row, spectrum.get("companions") or {})
    data["spectrum"] = pack(spectrum)
    if spectrum.get("heat") is not None and len(spectrum["heat"][0]) > 1:
        wave, value = spectrum["heat"]
        codes = np.rint(255 * np.clip(np.nan_to_num(value), 0, 1)).astype("u1")
        data["heat"] = {"grid": grid(wave), "values": base64.b64encode(codes.tobytes()).decode()}
    if spectrum.get("fit"):
        data["fit"] = pack_fit(spectrum["fit"], row)
    if line is not None and spectrum.get("others"):
        data["others"] = [{"label": clean(other["label"]), "kind": other["kind"], **pack(other)}
                          for other in spectrum["others"]]
    return data
