# Databricks notebook source
# MAGIC %md
# MAGIC # Explore a plate
# MAGIC What is on one plate: its objects, what cannot be trusted, which galaxies a search would take, one spectrum.
# MAGIC Widgets: `spectra`, the survey's tree on a Volume; `plate`, its number.

# COMMAND ----------

dbutils.widgets.text("spectra", "/Volumes/lensspark/boss/redux", "survey")
dbutils.widgets.text("plate", "4055", "plate")
SPECTRA, PLATE = dbutils.widgets.get("spectra"), dbutils.widgets.get("plate")

# COMMAND ----------

# MAGIC %md
# MAGIC ## Its spectra
# MAGIC A row is a spectrum; one with a `reason` is a spectrum or file that cannot be trusted.

# COMMAND ----------

from pyspark.sql import functions as F

from lensspark import source

source.register(spark)
spectra = spark.read.format("boss").option("plates", PLATE).option("window", "full").load(SPECTRA)
display(spectra.where("reason IS NULL").groupBy("class", "objtype").agg(
    F.count("*").alias("n"), F.round(F.median("z"), 3).alias("z"), F.round(F.median("sn_median"), 1).alias("sn"))
    .orderBy(F.desc("n")))

# COMMAND ----------

display(spectra.where("reason IS NOT NULL").select("path", "fiberid", "hdu", "reason"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## What a search would take
# MAGIC The criteria of the parent sample; a spectrum can fail several.

# COMMAND ----------

from lensspark import config
from lensspark.selection import select

settings = config.load()
chosen = select(spectra, settings.selection).where("reason IS NULL")
why = F.explode(F.split("not_selected_because", ","))
display(chosen.groupBy("selected").count())
display(chosen.where("NOT selected").select(why.alias("criterion")).groupBy("criterion").count().orderBy("criterion"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## The clearest galaxy of the sample
# MAGIC Flux in 1e-17 erg/s/cm2/Å over vacuum wavelength in Å, with its error; the search looks at 3800-5000 Å.

# COMMAND ----------

import numpy as np
from matplotlib.figure import Figure

best = chosen.where("selected").orderBy(F.desc("sn_median")).first()
if best is None:
    print("no galaxy of the sample on this plate")
else:
    wave = 10 ** (best["loglam0"] + 1e-4 * np.arange(len(best["flux"])))
    ivar = np.array(best["ivar"])
    good = ivar > 0
    figure = Figure(figsize=(10, 3.5))
    axes = figure.subplots()
    axes.plot(wave[good], np.array(best["flux"])[good], lw=0.6, label="flux")
    axes.plot(wave[good], ivar[good] ** -0.5, lw=0.6, label="error")
    axes.axvspan(*settings.read.window, alpha=0.1)
    axes.set(xlabel="wavelength, Å", title=f"{best['plate']}-{best['mjd']}-{best['fiberid']}, z = {best['z']:.4f}")
    axes.legend(frameon=False)
    display(figure)
