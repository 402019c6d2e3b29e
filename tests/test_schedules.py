"""The example schedules: bundle, DAG, manifest and cron line name jobs, options, files and settings that exist."""

import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import airflow_stub
import pytest
import yaml

from lensspark import config
from lensspark.session import EXIT_DONE, EXIT_QUARANTINE, EXIT_USAGE

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = yaml.safe_load((ROOT / "conf/databricks/databricks.yml").read_text())
MANIFESTS = list(yaml.safe_load_all((ROOT / "conf/kubernetes/lensspark.yaml").read_text()))
JOBS = BUNDLE["resources"]["jobs"]
CRON = re.findall(r"^((?:[\d*/,-]+ ){5})(.+)$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)


def accepted(job, words):
    """The arguments as the job's own parser takes them; fails where it does not, or where a setting is wrong."""
    main = runpy.run_path(str(ROOT / f"jobs/{job}.py"))["main"]
    main.__globals__["run_job"] = lambda parser, work, argv: parser.parse_args(argv)
    args = main([str(word) for word in words])
    assert config.load(args.config_files, args.settings)
    return args


# --- Databricks ---


def test_the_bundle_is_what_databricks_models_take():
    """databricks-bundles refuses unknown fields and wrong types."""
    jobs = pytest.importorskip("databricks.bundles.jobs")
    for name, job in JOBS.items():
        made = jobs.Job.from_dict(job)
        keys = {task.task_key for task in made.tasks}
        clusters = {cluster.job_cluster_key for cluster in made.job_clusters}
        for task in made.tasks:
            assert {before.task_key for before in task.depends_on} <= keys, name
            assert task.job_cluster_key in clusters, name
    with pytest.raises(ValueError, match="Unexpected field"):
        jobs.Job.from_dict(JOBS["search"] | {"shedule": {}})


def test_the_bundle_has_two_targets_and_declares_its_variables():
    assert set(BUNDLE) == {"bundle", "variables", "sync", "artifacts", "resources", "targets"}
    assert [BUNDLE["targets"][name]["mode"] for name in ("dev", "prod")] == ["development", "production"]
    text = (ROOT / "conf/databricks/databricks.yml").read_text()
    assert set(re.findall(r"\$\{var\.(\w+)\}", text)) == set(BUNDLE["variables"])
    for target in BUNDLE["targets"].values():
        assert set(target.get("variables", {})) <= set(BUNDLE["variables"])
    assert BUNDLE["variables"]["spark_version"]["default"].startswith("17.")  # 17 LTS: Spark 4.0


def test_the_bundle_builds_the_wheel_with_build_sh():
    artifact = BUNDLE["artifacts"]["lensspark"]
    folder = (ROOT / "conf/databricks" / artifact["path"]).resolve()
    command, word = artifact["build"].split()
    assert folder == ROOT and (folder / command).is_file()
    assert re.search(rf"^  {word}\)", (folder / command).read_text(), re.MULTILINE)
    wheels = {library["whl"] for job in JOBS.values() for task in job["tasks"] for library in task["libraries"]
              if "whl" in library}
    assert wheels == {artifact["files"][0]["source"]} == {"../../dist/*.whl"}


@pytest.mark.parametrize(("job", "task"), [(name, task) for name, job in JOBS.items() for task in job["tasks"]],
                         ids=lambda part: part if isinstance(part, str) else part["task_key"])
def test_bundle_tasks_run_jobs_that_exist(job, task):
    wheel = task["python_wheel_task"]
    setup = (ROOT / "setup.py").read_text()
    assert f'name="{wheel["package_name"]}"' in setup and f'"{wheel["entry_point"]} = lensspark.cli:main"' in setup
    name, *words = wheel["parameters"]
    assert name == task["task_key"] and accepted(name, words)


def test_bundle_jobs_are_those_of_the_pipeline():
    assert {task["task_key"] for job in JOBS.values() for task in job["tasks"]} == {
        "build_training", "train", "predict", "compare"}
    assert len(JOBS["search"]["schedule"]["quartz_cron_expression"].split()) == 6


def test_bundle_pins_are_the_constraints():
    pinned = set((ROOT / "conf/constraints.txt").read_text().replace("_", "-").splitlines())
    named = {library["pypi"]["package"] for job in JOBS.values() for task in job["tasks"]
             for library in task["libraries"] if "pypi" in library}
    assert named and named <= pinned


# --- Airflow ---


@pytest.fixture
def dag(monkeypatch):
    """conf/airflow's module, on Airflow's names alone."""
    for name, module in airflow_stub.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("LENSSPARK_HOME", str(ROOT))
    path = ROOT / "conf/airflow/lensspark_dag.py"
    spec = importlib.util.spec_from_file_location("lensspark_dag", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_dag_searches_then_compares_then_asks(dag):
    tasks = dag.dag.task_dict
    assert {name: task.upstream_task_ids for name, task in tasks.items()} == {
        "predict": set(), "compare": {"predict"}, "attention": {"predict", "compare"}}
    assert len(dag.dag.schedule.split()) == 5 and dag.dag.max_active_runs == 1


@pytest.mark.parametrize("name", ["predict", "compare"])
def test_dag_tasks_submit_jobs_that_exist(dag, name):
    task = dag.dag.task_dict[name]
    path = Path(task.application)
    assert path == ROOT / f"jobs/{name}.py" and path.is_file()
    assert accepted(name, task.application_args)
    assert Path(task.properties_file).is_file()
    package = (ROOT / "build.sh").read_text()
    for made in (task.py_files, task.archives.partition("#")[0]):
        assert str(Path(made).relative_to(ROOT)) in package


def test_the_codes_of_the_dag_are_those_of_the_jobs(dag):
    assert (dag.DONE, dag.USAGE, dag.ATTENTION) == (EXIT_DONE, EXIT_USAGE, EXIT_QUARANTINE)


@pytest.mark.parametrize(("code", "kind"), [(1, airflow_stub.AirflowException), (2, airflow_stub.AirflowFailException)])
def test_failures_are_tried_again_but_wrong_arguments_are_not(dag, code, kind):
    dag.predict.ends_with = code
    with pytest.raises(airflow_stub.AirflowException, match=f"code is: {code}") as failed:
        dag.predict.execute({})
    assert type(failed.value) is kind


@pytest.mark.parametrize("code", [0, 3])
def test_attention_alone_fails_on_exit_code_3(dag, code):
    class Instance:
        def xcom_pull(self, task_ids):
            return {"predict": found, "compare": 0}[task_ids]

    dag.predict.ends_with = code
    found = dag.predict.execute({})
    assert found == code
    if code:
        with pytest.raises(airflow_stub.AirflowFailException, match="^predict: done, but look"):
            dag.attention.execute({"ti": Instance()})
    else:
        dag.attention.execute({"ti": Instance()})


# --- Kubernetes ---


def application(manifest):
    return manifest["spec"]["template"] if manifest["kind"].startswith("Scheduled") else manifest["spec"]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest["metadata"]["name"])
def test_the_manifest_has_what_the_operator_needs(manifest):
    """Required fields and types of the CRD sparkoperator.k8s.io/v1beta2."""
    assert manifest["apiVersion"] == "sparkoperator.k8s.io/v1beta2"
    spec = application(manifest)
    if manifest["kind"] == "ScheduledSparkApplication":
        assert len(manifest["spec"]["schedule"].split()) == 5
        assert manifest["spec"]["concurrencyPolicy"] in ("Allow", "Forbid", "Replace")
    assert {"type", "mode", "sparkVersion", "image", "mainApplicationFile", "restartPolicy", "driver",
            "executor"} <= set(spec)
    assert spec["type"] == "Python" and spec["pythonVersion"] == "3" and spec["mode"] == "cluster"
    assert spec["sparkVersion"].startswith("4.0.")
    assert spec["restartPolicy"]["type"] in ("Never", "OnFailure", "Always")
    assert all(isinstance(value, str) for value in (*spec["arguments"], *spec["sparkConf"].values()))
    mounted = {volume["name"]: volume for volume in spec["volumes"]}
    for part in ("driver", "executor"):
        assert isinstance(spec[part]["cores"], int) and re.fullmatch(r"\d+[gm]", spec[part]["memory"])
        assert {mount["name"] for mount in spec[part]["volumeMounts"]} == set(mounted)
    places = [mount["mountPath"] for mount in spec["driver"]["volumeMounts"]]
    assert all(word.startswith(tuple(places)) for word in spec["arguments"] if word.startswith("/"))


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest["metadata"]["name"])
def test_the_manifest_runs_a_job_of_the_image(manifest):
    spec = application(manifest)
    installed = "local:///opt/lensspark/lib/python3.11/site-packages/lensspark/jobs/"
    assert spec["mainApplicationFile"].startswith(installed)
    assert accepted(Path(spec["mainApplicationFile"]).stem, spec["arguments"])
    recipe = (ROOT / "conf/kubernetes/Dockerfile").read_text()
    assert "python3.11 -m venv /opt/lensspark " in recipe and f"-t {spec['image']}" in recipe
    assert f"FROM apache/spark:{spec['sparkVersion']}-" in recipe and (ROOT / "conf/constraints.txt").is_file()


def test_schedules_set_spark_as_the_defaults_do():
    from lensspark.session import read_properties

    defaults = read_properties(ROOT / "conf/spark-defaults.conf")
    clusters = [cluster["new_cluster"].get("spark_conf", {}) for cluster in JOBS["search"]["job_clusters"]]
    for conf in [*(application(manifest)["sparkConf"] for manifest in MANIFESTS), *clusters]:
        assert conf.items() <= defaults.items()


# --- cron ---


def test_cron_lines_run_a_job_that_exists():
    assert CRON
    for fields, command in CRON:
        assert len(fields.split()) == 5
        words = shlex.split(command)
        start = next(i for i, word in enumerate(words) if word.startswith("jobs/"))
        end = words.index(">") if ">" in words else len(words)
        assert accepted(Path(words[start]).stem, words[start + 1:end])


def test_the_cron_line_searches_and_mails_what_asks_for_a_look(tmp_path):
    """Run with a stand-in for Python that ends with a code: silence on 0, the log's end on anything else."""
    command = next(command for _, command in CRON if " || " in command)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "searching" >&2\nexit $CODE\n')
    python.chmod(0o755)
    (tmp_path / "runs").mkdir()
    here = re.sub(r"cd \S+", f"cd {tmp_path}", command)
    for code, said in (("0", ""), ("1", "searching"), ("3", "searching")):
        done = subprocess.run(["/bin/sh", "-c", here], env={"CODE": code, "PATH": "/usr/bin:/bin"}, text=True,
                              capture_output=True)
        assert said in done.stdout and bool(done.stdout) == bool(said), code
        assert not done.stderr
