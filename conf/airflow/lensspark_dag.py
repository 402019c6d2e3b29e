"""lensspark on a schedule: search what is new, compare with the last result that people accepted, ask for a look.

A job's exit code 3 means done, but somebody should look: the tasks go on, and the last one, `attention`, fails so that
Airflow tells people as it does of any failure. Exit code 2 is a wrong argument or setting: it is not tried again.
Settings come from the environment of the workers: LENSSPARK_HOME (a checkout with dist/ made by ./build.sh package),
LENSSPARK_SPECTRA (the survey), LENSSPARK_RUNS (folder of runs). The connection `spark_lensspark` holds the master.
"""

import os
import re
from datetime import datetime, timedelta

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from airflow.sdk import DAG, BaseOperator

HOME = os.environ.get("LENSSPARK_HOME", "/opt/lensspark")
SPECTRA = os.environ.get("LENSSPARK_SPECTRA", "/data/boss/redux")
RUNS = os.environ.get("LENSSPARK_RUNS", "/data/lensspark")
DONE, USAGE, ATTENTION = 0, 2, 3
SUBMIT = {
    "conn_id": "spark_lensspark",
    "deploy_mode": "client",  # the driver's exit code is that of spark-submit in client mode alone
    "py_files": f"{HOME}/dist/lensspark-py.zip",
    "archives": f"{HOME}/dist/lensspark-env.tar.gz#env",
    "properties_file": f"{HOME}/conf/spark-defaults.conf",
    "conf": {"spark.executorEnv.PYTHONPATH": "./env/lib", "spark.pyspark.python": "python3.11",
             "spark.pyspark.driver.python": f"{HOME}/.venv/bin/python"},
}


class Job(SparkSubmitOperator):
    """A job of lensspark; its result is its exit code, 0 or 3."""

    def execute(self, context):
        try:
            super().execute(context)
        except AirflowException as error:
            found = re.search(r"Error code is: (\d+)", str(error))
            code = int(found[1]) if found else None
            if code == USAGE:
                raise AirflowFailException(str(error)) from error
            if code != ATTENTION:
                raise
            self.log.warning("done, but the result asks for a look: exit code %d", code)
            return ATTENTION
        return DONE


class Attention(BaseOperator):
    """Fails if one of the tasks before it ended with exit code 3."""

    def execute(self, context):
        codes = {task: context["ti"].xcom_pull(task_ids=task) for task in sorted(self.upstream_task_ids)}
        if asking := [task for task, code in codes.items() if code == ATTENTION]:
            raise AirflowFailException(f"{', '.join(asking)}: done, but look at {RUNS} before you trust it")


with DAG(
    dag_id="lensspark",
    description="Search of new and changed plates, and what it changed",
    schedule="0 3 * * 1",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"owner": "lensspark", "retries": 2, "retry_delay": timedelta(minutes=10)},
    tags=["lensspark"],
) as dag:
    predict = Job(
        task_id="predict", name="lensspark predict", application=f"{HOME}/jobs/predict.py",
        application_args=["--spectra", SPECTRA, "--out", f"{RUNS}/survey", "--incremental", "--resume"], **SUBMIT)
    compare = Job(
        task_id="compare", name="lensspark compare", application=f"{HOME}/jobs/compare.py",
        application_args=[f"{RUNS}/accepted", f"{RUNS}/survey", "--out", f"{RUNS}/changes/{{{{ ds }}}}"], **SUBMIT)
    attention = Attention(task_id="attention", retries=0)
    predict >> compare >> attention
    predict >> attention
