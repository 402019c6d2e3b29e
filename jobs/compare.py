"""Compare two finished runs: which hits and candidates appeared, vanished or moved from RUN_A to RUN_B, and why.

1. Join the ledgers by spectrum (plate, mjd, fiberid, run2d) on the cluster; keep the hits that changed.
2. Name the causes of each change, from what the runs recorded: input, mask, model, configuration, versions, a cut's
   limit, the other hits of the run, known lenses, grades. Where several could be, all are named.
3. Write DIR/changes.parquet, changes.ecsv, index.html and compare.json; print a short table.

Nothing in either run is changed. The exit code is 0 whether or not the runs differ; with --fail-on-change it is 3 if a
hit or candidate changed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lensspark.session import EXIT_ATTENTION, EXIT_DONE, job_parser, run_job, spark_session  # noqa: E402


def main(argv=None):
    parser = job_parser(__doc__)
    parser.add_argument("run_a", metavar="RUN_A", help="folder or URL of a finished run")
    parser.add_argument("run_b", metavar="RUN_B", help="folder or URL of another one")
    parser.add_argument("--out", metavar="DIR", help="folder or URL for the products (default: RUN_B/compare/RUN_ID_A)")
    parser.add_argument("--wave-px", type=float, default=0.5, help="a line farther off has moved (default 0.5 px)")
    parser.add_argument("--p-line", type=float, default=0.01, help="a score differing by more, too (default 0.01)")
    parser.add_argument("--fail-on-change", action="store_true", help="exit code 3 if a hit or candidate changed")
    return run_job(parser, work, argv)


def work(args, config):
    from lensspark import compare

    chosen = compare.plan(args.run_a, args.run_b, args.out, compare.Tolerance(args.wave_px, args.p_line))
    facts = compare.compare(spark_session("lensspark compare", args.master), chosen)
    print(f"{compare.text(facts)}\npage: {chosen.out.rstrip('/')}/index.html")
    return EXIT_ATTENTION if args.fail_on_change and facts["causes"] else EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
