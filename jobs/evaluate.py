"""Measure a run against the truth of a mock survey.

1. Read RUN/ledger and the truth table.
2. Recall of injected Lya lines by S/N, error of their position, false hits by kind of spectrum, at the run's
   threshold and at fixed false-hit rates.
3. What the cuts do to the hits of each kind, and whether q_value holds.
4. Print them; write them to RUN/evaluation.json.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lensspark.session import job_parser, run_job, spark_session  # noqa: E402


def main(argv=None):
    parser = job_parser(__doc__)
    parser.add_argument("--run", required=True, metavar="RUN", help="folder or URL of a finished run")
    parser.add_argument("--truth", required=True, metavar="FILE", help="truth.parquet of the survey that was searched")
    return run_job(parser, work, argv)


def work(args, config):
    from lensspark import evaluation, pipeline
    from lensspark.catalogue import join, write_file

    finished = pipeline.finished_run(args.run)
    spark = spark_session("lensspark evaluate", args.master)
    ledger = spark.read.parquet(pipeline.spark_path(join(args.run, "ledger"))).where("p_line IS NOT NULL").toPandas()
    truth = spark.read.parquet(pipeline.spark_path(args.truth)).toPandas()
    figures = evaluation.evaluate(ledger, truth, finished.score.threshold, finished.input)
    figures["vetting"] = evaluation.evaluate_vetting(ledger, truth, finished.input)
    write_file(join(args.run, "evaluation.json"), json.dumps(figures, indent=1).encode())
    print(evaluation.summary(figures))
    print(evaluation.vetting_summary(figures["vetting"]))


if __name__ == "__main__":
    sys.exit(main())
