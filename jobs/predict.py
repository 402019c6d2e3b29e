"""Search a tree of BOSS spectra for background emission lines: writes a run's folder.

1. List the spectra below ROOT: spPlate + spZbest, spec lite or full files, local or any fsspec URL.
2. Read them; what cannot be trusted goes to RUN/quarantine.
3. Select the parent sample; the rest keeps its reason in the ledger.
4. Fit each galaxy, score its spectrum with the network, locate and measure the line.
5. Vet the hits: every cut is a bit of `veto`, nothing is dropped. RUN/ledger has one row per spectrum.
6. Publish RUN/candidates (Parquet, FITS, ECSV, VOTable), RUN/report/index.html and RUN/run.json.

A result takes the place of a former one in RUN only when it is whole. For a schedule: --incremental --resume, which on
a new folder is a plain run, and which ends within seconds, without Spark, where the survey is as RUN has it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lensspark.session import EXIT_DONE, job_parser, run_job, spark_session  # noqa: E402


def main(argv=None):
    parser = job_parser(__doc__)
    parser.add_argument("--spectra", required=True, metavar="ROOT", help="folder or URL of the survey")
    parser.add_argument("--out", required=True, metavar="RUN", help="folder or URL for the run")
    parser.add_argument("--resume", action="store_true", help="take up what a killed run left in RUN")
    parser.add_argument("--incremental", action="store_true", help="score only what is new or changed since RUN")
    return run_job(parser, work, argv)


def work(args, config):
    from lensspark import pipeline

    run = pipeline.plan(args.spectra, args.out, config, args.resume, args.incremental)
    if run is None:
        return EXIT_DONE
    code = pipeline.predict(spark_session("lensspark predict", args.master), run)
    print(f"report: {run.product('report/index.html')}")
    return code


if __name__ == "__main__":
    sys.exit(main())
