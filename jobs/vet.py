"""Cut a finished run again, with other limits or with the grades that people gave: nothing is measured again.

1. Read RUN's ledger and configuration; lay --config, --set and the grades over them.
2. Gather over-densities, false-alarm rates, known lenses and ranks anew; cut.
3. Publish RUN2: ledger, candidates, overdensity, quarantine, report and run.json, as jobs/predict.py does.

score.threshold, [report], [limits] and the settings of [vetting] that are limits of cuts or work on the ledger's
columns can be changed (docs/operations.md has the list); another one ends with exit code 2. What was measured in the
spectra is kept; a lower threshold makes hits that were never measured, which fail every cut on such a measurement. The
report reads its candidates' spectra again for its plots, where RUN's survey and model are still at hand.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lensspark.session import job_parser, run_job, spark_session  # noqa: E402


def main(argv=None):
    parser = job_parser(__doc__)
    parser.add_argument("--run", required=True, metavar="RUN", help="folder or URL of a finished run")
    parser.add_argument("--out", required=True, metavar="RUN2", help="new folder or URL for the re-cut")
    parser.add_argument("--grades", metavar="FILE", help="CSV: plate, mjd, fiberid, run2d, grade (A, B, C, R), comment")
    return run_job(parser, work, argv)


def work(args, config):
    from lensspark import recut

    run = recut.plan(args.run, args.out, args.config_files, args.settings, args.grades)
    code = recut.recut(spark_session("lensspark vet", args.master), run, args.run)
    print(f"report: {run.product('report/index.html')}")
    return code


if __name__ == "__main__":
    sys.exit(main())
