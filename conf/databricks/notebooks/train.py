# Databricks notebook source
# MAGIC %md
# MAGIC # Train a model
# MAGIC `jobs/build_training.py` on the cluster, `jobs/train.py` on this machine; needs the extra `train` of lensspark.
# MAGIC Widgets: `data` and `model`, new folders on a Volume; `spectra`, a survey's tree, or empty for galaxies from
# MAGIC templates; `plates` and `fibres` of those; `settings`, such as `training.epochs=1`.

# COMMAND ----------

dbutils.widgets.text("data", "/Volumes/lensspark/boss/training/data", "training set")
dbutils.widgets.text("model", "/Volumes/lensspark/boss/training/model", "model")
dbutils.widgets.text("spectra", "", "survey")
dbutils.widgets.text("plates", "200", "plates")
dbutils.widgets.text("fibres", "1000", "fibres")
dbutils.widgets.text("settings", "", "settings")
DATA, MODEL = dbutils.widgets.get("data"), dbutils.widgets.get("model")

# COMMAND ----------

import runpy

from lensspark.config import resource

settings = [word for setting in dbutils.widgets.get("settings").split() for word in ("--set", setting)]


def job(name, *words):
    """Runs jobs/NAME.py on this notebook's session; fails unless it is done."""
    code = runpy.run_path(str(resource(f"jobs/{name}.py")))["main"]([*words, *settings])
    if code not in (0, 3):
        raise RuntimeError(f"{name}: exit code {code}: the reason is above")

# COMMAND ----------

# MAGIC %md
# MAGIC ## The training set

# COMMAND ----------

if spectra := dbutils.widgets.get("spectra"):
    job("build_training", "--spectra", spectra, "--out", DATA)
else:
    job("build_training", "--templates", "--out", DATA, "--plates", dbutils.widgets.get("plates"), "--fibres",
        dbutils.widgets.get("fibres"))

# COMMAND ----------

display(spark.read.parquet(f"{DATA}/train").groupBy("kind", "label").count().orderBy("kind"))

# COMMAND ----------

# MAGIC %md
# MAGIC ## The training
# MAGIC Started again after an interruption, it goes on from the last finished epoch.

# COMMAND ----------

job("train", "--data", DATA, "--out", MODEL, "--resume")

# COMMAND ----------

import json

import fsspec
import pandas as pd

with fsspec.open(f"{MODEL}/card.json") as file:
    card = json.load(file)
display(pd.DataFrame(card["history"])[["line_loss", "test_loss", "accuracy", "completeness", "purity"]])

# COMMAND ----------

display(pd.DataFrame([(key, value) for key, value in card["test"].items() if not isinstance(value, list)],
                     columns=["on the test plates", "value"]))

# COMMAND ----------

print(f"notebook `search` takes it as model = {MODEL}")
