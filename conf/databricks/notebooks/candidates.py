# Databricks notebook source
# MAGIC %md
# MAGIC # Inspect the candidates of a run
# MAGIC Widget `run`: the folder of a finished run. To grade candidates, download `report/index.html` and open it.

# COMMAND ----------

dbutils.widgets.text("run", "/Volumes/lensspark/boss/runs/first", "run")
RUN = dbutils.widgets.get("run")

# COMMAND ----------

import json

import fsspec

from lensspark.vetting import funnel_text

with fsspec.open(f"{RUN}/run.json") as file:
    card = json.load(file)
print(funnel_text(card["funnel"] | {"counts": card["counts"]}))

# COMMAND ----------

# MAGIC %md
# MAGIC ## The list, best first
# MAGIC Wavelengths in Å, fluxes in 1e-17 erg/s/cm2; columns are explained in `lensspark/schema.py`.

# COMMAND ----------

candidates = spark.read.parquet(f"{RUN}/candidates").orderBy("rank")
display(candidates.select("rank", "name", "plate", "mjd", "fiberid", "z_lens", "z_source", "p_line", "line_wave",
                          "line_snr", "line_flux", "theta_e", "p_lya", "identity", "q_value", "followup", "known_lens"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## What the cuts take away
# MAGIC A hit can fail several; `alone` are those that no other cut fails.

# COMMAND ----------

import pandas as pd
from pyspark.sql import functions as F

from lensspark.vetting import CUTS

hits = spark.read.parquet(f"{RUN}/ledger").where("is_hit")
failing = hits.agg(*(F.count_if(F.col("veto").bitwiseAND(int(cut.bit)) != 0).alias(cut.name) for cut in CUTS),
                   *(F.count_if(F.col("veto") == int(cut.bit)).alias(f"{cut.name}_alone") for cut in CUTS)).first()
display(pd.DataFrame([(cut.stage, cut.name, failing[cut.name], failing[f"{cut.name}_alone"]) for cut in CUTS],
                     columns=["stage", "cut", "fail", "alone"]))

# COMMAND ----------

# MAGIC %md
# MAGIC ## Where the lines are
# MAGIC Lines that gather at one wavelength, or at one in the frame of the galaxies, are no sources.

# COMMAND ----------

from matplotlib.figure import Figure

lines = hits.select("line_wave", "z_lens", "line_snr", (F.col("veto") == 0).alias("kept")).toPandas()
figure = Figure(figsize=(10, 3.5))
lines["rest_wave"] = lines["line_wave"] / (1 + lines["z_lens"])
for axes, column, label in zip(figure.subplots(1, 2), ("line_wave", "rest_wave"), ("observed", "lens's"), strict=True):
    for kept, group in lines.groupby("kept"):
        axes.plot(group[column], group["line_snr"], "o" if kept else ".", label="kept" if kept else "vetoed")
    axes.set(xlabel=f"wavelength, {label} frame, Å", ylabel="S/N of the line", yscale="log")
    axes.legend(frameon=False)
display(figure)
