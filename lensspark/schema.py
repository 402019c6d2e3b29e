"""Every table of lensspark, declared once: column name, type, unit, meaning and UCD.

From these declarations come Spark's schemas (`struct_type`, `conform`) and the headers of the FITS, ECSV and
VOTable products. Types are Spark SQL's simple names. Wavelengths are vacuum, heliocentric, observed frame.
UCDs follow the IVOA UCD1+ vocabulary (https://www.ivoa.net/documents/UCD1+/).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructType

FLUX_UNIT = "1e-17 erg / (s cm2 Angstrom)"
LINE_FLUX_UNIT = "1e-17 erg / (s cm2)"


@dataclass(frozen=True)
class Column:
    """One column of a table: Spark type, unit in astropy's spelling ('' for none), description, UCD."""

    name: str
    type: str
    description: str
    unit: str = ""
    ucd: str = ""


@dataclass(frozen=True)
class Table:
    """An ordered set of columns; `a + b` concatenates two."""

    name: str
    columns: tuple[Column, ...]

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    @property
    def ddl(self) -> str:
        """The table as a Spark DDL string, which both Spark and a pandas UDF accept."""
        return ", ".join(f"`{column.name}` {column.type}" for column in self.columns)

    def struct_type(self) -> StructType:
        from pyspark.sql import types as T

        simple = {
            "int": T.IntegerType(), "long": T.LongType(), "double": T.DoubleType(), "float": T.FloatType(),
            "string": T.StringType(), "boolean": T.BooleanType(), "binary": T.BinaryType(),
        }
        simple |= {f"array<{name}>": T.ArrayType(simple[name], containsNull=False) for name in ("float", "int")}
        return T.StructType([T.StructField(column.name, simple[column.type]) for column in self.columns])

    def conform(self, df: DataFrame) -> DataFrame:
        """`df` with exactly this table's columns, in order and type; a column that `df` lacks is null.

        Raises ValueError if `df` has columns that the table does not declare.
        """
        present = set(df.columns)
        if extra := sorted(present - set(self.names)):
            raise ValueError(f"columns {extra} are not declared in table {self.name!r}")
        # As text: each operation on a Column is a few round trips to the JVM, of which 120 columns make thousands.
        return df.selectExpr(*(f"CAST({f'`{c.name}`' if c.name in present else 'NULL'} AS {c.type}) AS `{c.name}`"
                               for c in self.columns))


KEY = (
    Column("plate", "int", "SDSS plate number", ucd="meta.id"),
    Column("mjd", "int", "modified Julian date of the observation", "d", "time.epoch"),
    Column("fiberid", "int", "fibre number, 1-640 (SDSS) or 1-1000 (BOSS)", ucd="meta.id;instr"),
    Column("run2d", "string", "version of the 2-D spectroscopic reduction", ucd="meta.version"),
)

CATALOGUE = (
    Column("ra", "double", "right ascension of the fibre, J2000", "deg", "pos.eq.ra;meta.main"),
    Column("dec", "double", "declination of the fibre, J2000", "deg", "pos.eq.dec;meta.main"),
    Column("objtype", "string", "object type at targeting (plug map)", ucd="meta.code.class"),
    Column("class", "string", "spectroscopic class of the best fit", ucd="src.class"),
    Column("subclass", "string", "spectroscopic subclass of the best fit", ucd="src.class"),
    Column("z", "double", "redshift of the best fit", ucd="src.redshift"),
    Column("z_err", "double", "error of z; negative values flag a failed fit", ucd="stat.error;src.redshift"),
    Column("zwarning", "long", "bits that warn about z", ucd="meta.code.qual"),
    Column("class_noqso", "string", "class of the best fit without quasar templates", ucd="src.class"),
    Column("subclass_noqso", "string", "subclass of the best fit without quasar templates", ucd="src.class"),
    Column("z_noqso", "double", "redshift of the best fit without quasar templates", ucd="src.redshift"),
    Column("z_err_noqso", "double", "error of z_noqso", ucd="stat.error;src.redshift"),
    Column("zwarning_noqso", "long", "bits that warn about z_noqso", ucd="meta.code.qual"),
    Column("sn_median", "double", "median S/N per pixel over the whole spectrum", ucd="stat.snr"),
    Column("vdisp", "double", "velocity dispersion; <= 0 or >= 840 are fit rails", "km / s", "phys.veloc.dispersion"),
    Column("vdisp_err", "double", "error of vdisp", "km / s", "stat.error;phys.veloc.dispersion"),
    Column("mag_i", "double", "i magnitude, where a photometric catalogue gives one", "mag", "phot.mag;em.opt.I"),
    Column("plate_quality", "string", "quality of the plate, where a platelist gives one", ucd="meta.code.qual"),
    Column("sky_chi2", "double", "median sky chi2 of the plate, where a platelist gives one", ucd="stat.fit.chi2"),
)

PIXELS = (
    Column("loglam0", "double", "log10 of the wavelength in Angstrom of the first pixel; step 1e-4 dex"),
    Column("flux", "array<float>", "flux density", FLUX_UNIT, "phot.flux.density;em.wl"),
    Column("ivar", "array<float>", "inverse variance of flux; 0 where there is no measurement"),
    Column("and_mask", "array<int>", "mask bits set in every exposure"),
    Column("or_mask", "array<int>", "mask bits set in any exposure"),
    Column("wdisp", "array<float>", "dispersion (sigma) of the line-spread function", "pix"),
    Column("sky", "array<float>", "subtracted sky flux density", FLUX_UNIT),
    Column("model", "array<float>", "pipeline's best-fit model", FLUX_UNIT),
)

PROVENANCE = (Column("path", "string", "file that the row was read from", ucd="meta.id;meta.file"),)

FAULT = (
    Column("hdu", "int", "HDU in which the fault was found; null if the file as a whole", ucd="meta.number"),
    Column("reason", "string", "why the spectrum or file cannot be trusted; null for a good row", ucd="meta.note"),
)

# What spark.read.format("boss") yields. A row with a reason has null pixels; a row for a whole file has a null fiberid.
SPECTRA = Table("spectra", KEY + CATALOGUE + PIXELS + PROVENANCE + FAULT)

QUARANTINE = Table("quarantine", PROVENANCE + KEY + FAULT)

SELECTION = (
    Column("z_lens", "double", "redshift of the foreground galaxy, as the selection chose it", ucd="src.redshift"),
    Column("selected", "boolean", "in the parent sample", ucd="meta.code"),
    Column("not_selected_because", "string", "names of the criteria that failed, comma separated", ucd="meta.note"),
)

# What one pass over the pixels measures in each selected spectrum (inference.py).
LINE = (
    Column("p_line", "double", "network's score for a background emission line, 0-1; 0: S/N below score.min_snr",
           ucd="stat.probability"),
    Column("line_wave", "double", "wavelength of the line, vacuum", "Angstrom", "em.wl.central;spect.line"),
    Column("line_snr", "double", "matched-filter S/N at line_wave", ucd="stat.snr;spect.line"),
    Column("line_flux", "double", "matched-filter flux of the line", LINE_FLUX_UNIT, "phot.flux;spect.line"),
    Column("line_flux_err", "double", "error of line_flux", LINE_FLUX_UNIT, "stat.error;phot.flux"),
    Column("line_peak", "double", "peak flux density above the galaxy model", FLUX_UNIT, "phot.flux.density;stat.max"),
    Column("line_mask_fraction", "double", "fraction of unusable pixels within the filter about line_wave"),
    Column("n_line_hits", "int", "separate matched-filter peaks above the S/N floor", ucd="meta.number"),
)

# The same search where no line can be, in the spectrum turned upside down or in a sky fibre, and where Lya is rare, in
# as many pixels redwards of the window (inference.py).
NULLS = (
    Column("null_p_line", "double", "network's score of the null spectrum: upside down, or a sky fibre's own",
           ucd="stat.probability"),
    Column("null_wave", "double", "wavelength of its line", "Angstrom", "em.wl.central"),
    Column("null_snr", "double", "matched-filter S/N of its line", ucd="stat.snr"),
    Column("shifted_p_line", "double", "network's score of the pixels redwards of the window", ucd="stat.probability"),
    Column("shifted_wave", "double", "wavelength of the line there", "Angstrom", "em.wl.central"),
    Column("shifted_snr", "double", "matched-filter S/N of the line there", ucd="stat.snr"),
)

HIT = (Column("is_hit", "boolean", "p_line is above the threshold", ucd="meta.code"),)

# Measured for hits by the vetting stages; null until such a stage has run.
VETTING = (
    Column("z_source", "double", "redshift of the source if the line is Lyman alpha", ucd="src.redshift"),
    Column("profile_flux", "double", "flux of the skew-normal fit", LINE_FLUX_UNIT, "phot.flux;spect.line"),
    Column("profile_flux_err", "double", "error of profile_flux", LINE_FLUX_UNIT, "stat.error;phot.flux"),
    Column("profile_wave", "double", "peak of the skew-normal fit, vacuum", "Angstrom", "em.wl;spect.line"),
    Column("profile_wave_err", "double", "error of profile_wave", "Angstrom", "stat.error;em.wl"),
    Column("profile_width", "double", "rms width of the skew-normal fit as observed", "pix", "spect.line.width"),
    Column("profile_width_err", "double", "error of profile_width", "pix", "stat.error;spect.line.width"),
    Column("profile_chi2", "double", "chi2 of the skew-normal fit with a constant", ucd="stat.fit.chi2"),
    Column("profile_dof", "double", "degrees of freedom of profile_chi2", ucd="stat.fit.dof"),
    Column("alpha", "double", "shape parameter of the skew-normal profile", ucd="stat.param;spect.line"),
    Column("alpha_err", "double", "error of alpha", ucd="stat.error"),
    Column("alpha_low", "double", "lower end of alpha's 68 % interval", ucd="stat.error;stat.min"),
    Column("alpha_high", "double", "upper end of alpha's 68 % interval", ucd="stat.error;stat.max"),
    Column("p_skew_positive", "double", "probability that alpha > 0", ucd="stat.probability"),
    Column("dchi2_skew", "double", "chi2(Gaussian) - chi2(skew normal)", ucd="stat.fit.chi2"),
    Column("dchi2_oii", "double", "chi2([OII] doublet) - chi2(skew normal)", ucd="stat.fit.chi2"),
    Column("dchi2_double", "double", "chi2(two peaks) - chi2(skew normal)", ucd="stat.fit.chi2"),
    Column("line_width_over_lsf", "double", "rms width of a Gaussian fit over that of the line-spread function"),
    Column("line_width_over_lsf_err", "double", "error of line_width_over_lsf", ucd="stat.error"),
    Column("dchi2_spike", "double", "chi2(Gaussian of the LSF's width or wider) - chi2(spike); > 0 favours a spike",
           ucd="stat.fit.chi2"),
    Column("n_exposures", "int", "single exposures that the line was measured in; null without a full file",
           ucd="meta.number"),
    Column("exposure_chi2", "double", "chi2 of the line's flux in those about their mean", ucd="stat.fit.chi2"),
    Column("exposure_tension", "double", "sigma by which one exposure outshines the mean of the others", "",
           "stat.value"),
    Column("exposure_rest_snr", "double", "S/N of the line in all exposures but that one", ucd="stat.snr"),
    Column("identity", "string", "lya, oii, ciii, civ, mgii, hbeta, oiii, lens, sky, cosmic or undecided",
           ucd="meta.code.class;spect.line"),
    Column("p_lya", "double", "probability that the line is Lyman alpha", ucd="stat.probability"),
    Column("p_oii", "double", "probability that the line is [OII]", ucd="stat.probability"),
    Column("p_other", "double", "probability that the line is anything else", ucd="stat.probability"),
    *(Column(f"p_{name}", "double", f"share of p_other: {text}", ucd="stat.probability") for name, text in (
        ("ciii", "CIII] 1909"), ("civ", "CIV 1549"), ("mgii", "Mg II 2799"), ("hbeta", "Hbeta"),
        ("oiii", "[OIII] 5008"),
        ("lens", "line of the lens"), ("sky", "line of the night sky"), ("cosmic", "cosmic ray"))),
    Column("sn_lya", "double", "largest S/N at NV, CIV, HeII, CIII] if the line were Lyman alpha", ucd="stat.snr"),
    Column("sn_oii_veto", "double", "largest S/N at Hbeta, [OIII], Halpha if the line were [OII]", ucd="stat.snr"),
    Column("sn_ciii", "double", "largest S/N at CIV, Mg II, [OII] if the line were CIII]", ucd="stat.snr"),
    Column("sn_civ", "double", "largest S/N at CIII], Mg II if the line were CIV", ucd="stat.snr"),
    Column("sn_mgii", "double", "largest S/N at [OII], Hbeta, [OIII] if the line were Mg II", ucd="stat.snr"),
    Column("sn_hbeta", "double", "largest S/N at [OIII], Halpha if the line were Hbeta", ucd="stat.snr"),
    Column("sn_oiii", "double", "largest S/N at Hbeta, [OIII] 4960, Halpha if it were [OIII] 5008", ucd="stat.snr"),
    Column("theta_e", "double", "Einstein radius of a singular isothermal sphere", "arcsec", "pos.angDistance"),
    Column("theta_e_err", "double", "error of theta_e", "arcsec", "stat.error;pos.angDistance"),
    Column("p_multiple", "double", "probability that a source in the fibre is multiply imaged", ucd="stat.probability"),
    Column("image_separation", "double", "expected separation of two images", "arcsec", "pos.angDistance"),
    Column("lens_line_px", "double", "distance from the galaxy's own Mg II, which the search does not mask", "pix",
           "stat.value"),
    Column("overdensity_lens", "double", "excess of lines at its lens-frame wavelength over the median", "",
           "stat.value"),
    Column("overdensity_observed", "double", "excess of lines at its observed wavelength over the running median", "",
           "stat.value"),
    Column("p_fibre", "double", "probability of so many lines in its fibre number", ucd="stat.probability"),
    Column("p_plate", "double", "probability of so many lines on its plate", ucd="stat.probability"),
    Column("p_night", "double", "probability of so many lines in its night", ucd="stat.probability"),
    Column("n_same_wave", "int", "other fibres of its plate and night with its line", ucd="meta.number"),
    Column("p_same_wave", "double", "probability of so many lines of the plate there", ucd="stat.probability"),
    Column("n_repeat", "int", "other observations of the same object in the run", ucd="meta.number"),
    Column("n_repeat_confirmed", "int", "repeats that show the line too", ucd="meta.number"),
    Column("repeat_snr", "double", "S/N of the line in all observations of the object together", ucd="stat.snr"),
    Column("repeat_tension", "double", "sigma by which the line is too faint in the worst repeat", ucd="stat.value"),
    Column("neighbour_fiber", "int", "neighbour fibre with a brighter line at the same wavelength", ucd="meta.id"),
    Column("n_neighbour", "int", "neighbour fibres that were measured there", ucd="meta.number"),
    Column("neighbour_ratio", "double", "flux of the brightest neighbour's line over the hit's",
           ucd="phot.flux;arith.ratio"),
    Column("q_value", "double", "false-discovery rate among hits at least as significant", ucd="stat.probability"),
    Column("known_lens", "string", "name of the known lens at this position", ucd="meta.id.cross"),
    Column("followup", "double", "priority for follow-up, 0-1 (lensspark.vetting.rank)", ucd="stat.value"),
    Column("grade", "string", "grade given by a person: A, B, C, or R for reject", ucd="meta.code.qual"),
    Column("comment", "string", "what the person said", ucd="meta.note"),
)

VETTING_NAMES = tuple(column.name for column in VETTING)

VERDICT = (
    Column("veto", "int", "bits of the cuts that the hit failed (lensspark.vetting.Veto); 0 = candidate; null = no hit",
           ucd="meta.code.qual"),
    Column("run_id", "string", "identifier of the run", ucd="meta.id"),
    Column("model_sha256", "string", "sha256 of the model's card", ucd="meta.id"),
)

# One row per readable input spectrum.
LEDGER = Table("ledger", KEY + CATALOGUE + SELECTION + LINE + NULLS + HIT + VETTING + VERDICT + PROVENANCE)

# The bins and groups that over-densities were looked for in (vetting/overdensity.py).
OVERDENSITY = Table("overdensity", (
    Column("frame", "string", "lens or observed (wavelength), fiberid, plate or mjd"),
    Column("bin", "long", "number of the bin of log10 wavelength; else fibre, plate or night"),
    Column("value", "double", "wavelength at the bin's centre, Angstrom; else as bin"),
    Column("n", "long", "lines counted"),
    Column("expected", "double", "running median, at least 1; else the survey's mean rate times the spectra there"),
    Column("excess", "double", "(n - expected) / sqrt(expected), the largest of a bin and those beside it"),
    Column("probability", "double", "Poisson probability of n or more; null for wavelengths"),
    Column("flagged", "boolean", "over the limit of its cut"),
))

# The input of a run, a row per spectrum's file or pair of files, then what else it took (manifest.py). A file is the
# same if its size is, and its version where the store gives one, else its time.
MANIFEST = Table("manifest", (
    Column("path", "string", "file, below the survey's root where it lies there", ucd="meta.id;meta.file"),
    Column("kind", "string", "plate, lite, spec, full, fault; catalogue, exposures or lenses, which are not searched"),
    KEY[0], KEY[1], KEY[2],
    Column("run2d", "string", "version of the 2-D reduction, as the folders say"),
    Column("size", "long", "size of the file", "byte"),
    Column("mtime_ns", "long", "time of its last change, Unix epoch", "ns"),
    Column("version", "string", "ETag of an object store, or sha256:... of the content where that was asked for"),
    Column("zbest", "string", "the plate's spZbest"),
    Column("zbest_size", "long", "its size", "byte"),
    Column("zbest_mtime_ns", "long", "time of its last change", "ns"),
    Column("zbest_version", "string", "its version"),
    Column("known", "string", "digest of what catalogues say of the plate; reason of a fault"),
))

# What the pass over the pixels leaves behind: the ledger before vetting, with the quarantine's rows still in it.
SCORED = Table("scored", KEY + CATALOGUE + SELECTION + LINE + NULLS + PROVENANCE + FAULT)

# Name and rank, then the columns of the reference's Table 1: position, redshifts, magnitude, line flux, skewness.
_TABLE_1 = ("ra", "dec", "z_lens", "z_source", "mag_i", "profile_flux", "alpha")
CANDIDATES = Table(
    "candidates",
    (
        Column("name", "string", "IAU name, truncated", ucd="meta.id;meta.main"),
        Column("rank", "int", "1 = most promising", ucd="meta.number"),
        *(column for name in _TABLE_1 for column in LEDGER.columns if column.name == name),
        *(column for column in LEDGER.columns if column.name not in _TABLE_1),
    ),
)

# What compare.py keeps of both runs: where the line is, what the cuts read, where the spectrum came from.
COMPARED = (
    "ra", "dec", "class", "z", "zwarning", "sn_median", "z_lens", "selected", "not_selected_because", "p_line",
    "line_wave", "line_snr", "line_flux", "line_peak", "line_mask_fraction", "n_line_hits", "is_hit", "profile_chi2",
    "p_skew_positive", "dchi2_skew", "dchi2_spike", "exposure_tension", "p_lya", "p_sky", "sn_oii_veto", "lens_line_px",
    "overdensity_lens", "overdensity_observed", "p_fibre", "p_plate", "p_night", "p_same_wave", "n_repeat",
    "repeat_tension", "n_neighbour", "neighbour_ratio", "q_value", "known_lens", "grade", "veto", "path",
)
_OF_BOTH = tuple(
    replace(column, name=f"{name}_{side}", description=f"{column.description}; in run {side.upper()}")
    for name in COMPARED for column in LEDGER.columns if column.name == name for side in "ab")

# A hit or candidate that two runs disagree about (compare.py).
CHANGES = Table("changes", (
    *KEY,
    Column("hit", "string", "appeared, vanished or kept, from run A to run B", ucd="meta.code"),
    Column("candidate", "string", "appeared, vanished or kept; null in neither run", ucd="meta.code"),
    Column("moved", "string", "what else changed beyond its tolerance: line_wave, p_line, veto; comma separated"),
    Column("cause", "string", "the first of causes", ucd="meta.code"),
    Column("proven", "boolean", "what the runs recorded leaves no other cause", ucd="meta.code"),
    Column("causes", "string", "all causes that could be, the proven or most direct one first; comma separated"),
    Column("why", "string", "the same in words, with names and values", ucd="meta.note"),
    Column("cuts_failed", "string", "cuts that only run B's verdict fails, comma separated", ucd="meta.code.qual"),
    Column("cuts_passed", "string", "cuts that only run A's verdict fails, comma separated", ucd="meta.code.qual"),
    *_OF_BOTH,
))

# What simulate.py knows of each mock spectrum.
TRUTH = Table(
    "truth",
    KEY
    + (
        Column("kind", "string", "clean, lya, oii, airglow, cosmic, lens_line, crosstalk, sky, star, broad, broken"),
        Column("object_id", "long", "same for all observations of one object", ucd="meta.id"),
        Column("is_repeat", "boolean", "object is observed on another plate too"),
        Column("ra", "double", "right ascension, J2000", "deg", "pos.eq.ra"),
        Column("dec", "double", "declination, J2000", "deg", "pos.eq.dec"),
        Column("z_lens", "double", "redshift of the galaxy", ucd="src.redshift"),
        Column("z_source", "double", "redshift of the background line's source", ucd="src.redshift"),
        Column("line_wave", "double", "wavelength of the injected line's peak, vacuum", "Angstrom", "em.wl"),
        Column("line_flux", "double", "flux of the injected line", LINE_FLUX_UNIT, "phot.flux"),
        Column("line_fwhm", "double", "intrinsic FWHM of the injected line", "km / s", "spect.line.width"),
        Column("line_alpha", "double", "skew-normal shape of the injected line"),
        Column("line_peak", "double", "peak flux density of the injected line", FLUX_UNIT),
        Column("line_snr", "double", "sqrt(sum f^2 ivar) of the injected line over measured pixels", ucd="stat.snr"),
        Column("path", "string", "file, relative to the survey's root", ucd="meta.id;meta.file"),
        Column("fault", "string", "how a broken file was broken"),
    ),
)

# One spectrum to learn from, cut to the window (training_set.py): raw pixels, so that the network's input stays the
# one function of training and search.
TRAINING = Table(
    "training",
    KEY
    + (
        Column("kind", "string", "what the spectrum shows; see truth"),
        Column("z", "double", "redshift of the galaxy as its catalogue gives it", ucd="src.redshift"),
        Column("label", "float", "1 with a background line, 0 without"),
        Column("line_pixel", "float", "fractional pixel of the line's peak in the window; NaN without", "pix"),
        Column("line_snr", "double", "S/N of the injected line; NaN without", ucd="stat.snr"),
    )
    + tuple(column for column in PIXELS if column.name in ("flux", "ivar", "and_mask")),
)

# Fibres of a survey that artificial spectra are made of (training_set/survey.py): galaxies and blank sky, on the window
# and a margin on both sides.
BACKDROPS = Table(
    "backdrops",
    KEY
    + (
        Column("is_sky", "boolean", "fibre on blank sky; else a galaxy of the sample"),
        Column("z", "double", "redshift of the galaxy; null for sky", ucd="src.redshift"),
    )
    + tuple(column for column in PIXELS if column.name in ("flux", "ivar", "and_mask", "wdisp")),
)

# What a survey's galaxies are like in each bin of redshift (galaxy_bins.py); arrays are flattened, last index fastest.
GALAXIES = Table(
    "galaxies",
    (
        Column("z_bin", "int", "number of the bin, z_low over the bins' width"),
        Column("z_low", "double", "lower edge of the bin", ucd="src.redshift;stat.min"),
        Column("z_high", "double", "upper edge of the bin", ucd="src.redshift;stat.max"),
        Column("n_own", "int", "galaxies of the training plates in the bin", ucd="meta.number"),
        Column("reach", "int", "bins on each side that galaxies were borrowed from", ucd="meta.number"),
        Column("n_used", "int", "galaxies that the vectors come from, outliers removed", ucd="meta.number"),
        Column("median_flux", "double", "median over the galaxies of their mean flux density", FLUX_UNIT,
               "phot.flux.density"),
        Column("chi2", "double", "median chi2 per degree of freedom, by the other half's vectors", ucd="stat.fit.chi2"),
        Column("n_held_out", "int", "galaxies of the validation plates in the bin", ucd="meta.number"),
        Column("chi2_held_out", "double", "the same of those, fitted with the vectors", ucd="stat.fit.chi2"),
        Column("vectors", "array<float>", "two sets of eigenvectors (2, k, n_pix) in units of a galaxy's mean flux"),
        Column("mean", "array<float>", "mean (2, k) of the coefficients of each set"),
        Column("covariance", "array<float>", "covariance (2, k, k) of the coefficients, their errors taken out"),
        Column("halves", "array<float>", "which set (n_used) describes each galaxy: that of the other half's galaxies"),
        Column("coefficients", "array<float>", "coefficients (n_used, k) of each galaxy, shrunk by their errors"),
        Column("spreads", "array<float>", "root (n_used, k, k) of the covariance that is left of each"),
        Column("fluxes", "array<float>", "mean flux density (n_used) of each galaxy", FLUX_UNIT),
    ),
)
