# Databricks notebook source
# MAGIC %md
# MAGIC # Search a survey
# MAGIC `jobs/predict.py` on this notebook's session. Widgets: `spectra`, the survey's tree; `run`, a new folder for the
# MAGIC run; `model`, a shipped model or a model's folder; `settings`, such as `score.threshold=0.99`.

# COMMAND ----------

dbutils.widgets.text("spectra", "/Volumes/lensspark/boss/redux", "survey")
dbutils.widgets.text("run", "/Volumes/lensspark/boss/runs/first", "run")
dbutils.widgets.text("model", "default", "model")
dbutils.widgets.text("settings", "", "settings")
RUN = dbutils.widgets.get("run")

# COMMAND ----------

import runpy

from lensspark.config import resource

settings = [f"score.model='{dbutils.widgets.get('model')}'", *dbutils.widgets.get("settings").split()]
words = ["--spectra", dbutils.widgets.get("spectra"), "--out", RUN]
words += [word for setting in settings for word in ("--set", setting)]
code = runpy.run_path(str(resource("jobs/predict.py")))["main"](words)
if code not in (0, 3):
    raise RuntimeError(f"exit code {code}: the reason is above")

# COMMAND ----------

# MAGIC %md
# MAGIC ## What became of the spectra
# MAGIC Input = quarantined + not selected + scored; scored = hits + non-hits; hits = candidates + vetoed.

# COMMAND ----------

import json

import fsspec
import pandas as pd

with fsspec.open(f"{RUN}/run.json") as file:
    card = json.load(file)
display(pd.DataFrame({"what": list(card["counts"]), "spectra": list(card["counts"].values())}))

# COMMAND ----------

display(pd.DataFrame({"stage": list(card["timings"]), "seconds": list(card["timings"].values())}))

# COMMAND ----------

display(spark.read.parquet(f"{RUN}/quarantine").groupBy("reason").count().orderBy("reason"))

# COMMAND ----------

print(f"report page: {RUN}/report/index.html; notebook `candidates` goes on from here")
