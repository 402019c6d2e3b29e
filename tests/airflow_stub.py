"""Airflow's names that conf/airflow uses, for machines without Airflow: enough to import a DAG and run its operators.

The options of `SparkSubmitOperator` are those of apache-airflow-providers-apache-spark 6.3.4; it refuses others, as the
real one does. `Hook` ends as spark-submit would with the exit code that a test gives.
"""

from __future__ import annotations

import logging
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

SPARK_SUBMIT = """application conf conn_id files py_files archives driver_class_path jars java_class packages
    exclude_packages repositories total_executor_cores executor_cores executor_memory driver_memory keytab principal
    proxy_user name num_executors status_poll_interval application_args env_vars verbose spark_binary properties_file
    yarn_queue deploy_mode use_krb5ccache post_submit_commands track_driver_via_k8s_api yarn_track_via_rm_api
    yarn_rm_auth durable""".split()  # noqa: SIM905
BASE = ["task_id", "retries", "retry_delay", "trigger_rule", "owner"]
DAG_OPTIONS = """dag_id description schedule start_date end_date catchup max_active_runs default_args tags""".split()  # noqa: SIM905


class AirflowException(Exception):
    """As Airflow's: the task is tried again."""


class AirflowFailException(AirflowException):
    """As Airflow's: the task fails for good."""


class DAG:
    """The tasks that were made within its `with` block."""

    current: DAG | None = None

    def __init__(self, **options: Any):
        assert not set(options) - set(DAG_OPTIONS), options
        self.__dict__ |= options
        self.task_dict: dict[str, BaseOperator] = {}

    def __enter__(self) -> DAG:
        DAG.current = self
        return self

    def __exit__(self, *_: Any) -> None:
        DAG.current = None


class BaseOperator:
    options = BASE

    def __init__(self, **options: Any):
        unknown = set(options) - set(self.options)
        assert not unknown, f"{type(self).__name__} has no {unknown}"
        self.__dict__ |= options
        self.upstream_task_ids: set[str] = set()
        self.log = logging.getLogger(self.task_id)
        DAG.current.task_dict[self.task_id] = self

    def __rshift__(self, other: BaseOperator) -> BaseOperator:
        other.upstream_task_ids.add(self.task_id)
        return other


class SparkSubmitOperator(BaseOperator):
    options = BASE + SPARK_SUBMIT
    ends_with = 0

    def execute(self, context: dict[str, Any]) -> None:
        if self.ends_with:
            raise AirflowException(f"Cannot execute: spark-submit. Error code is: {self.ends_with}.")


def modules() -> dict[str, ModuleType]:
    """sys.modules entries for what conf/airflow imports."""
    found = {"airflow.sdk": SimpleNamespace(DAG=DAG, BaseOperator=BaseOperator),
             "airflow.providers.common.compat.sdk": SimpleNamespace(
                 AirflowException=AirflowException, AirflowFailException=AirflowFailException),
             "airflow.providers.apache.spark.operators.spark_submit": SimpleNamespace(
                 SparkSubmitOperator=SparkSubmitOperator)}
    parents = {name.rsplit(".", level)[0] for name in found for level in range(1, name.count(".") + 1)}
    return {name: ModuleType(name) for name in parents - set(sys.modules)} | found
