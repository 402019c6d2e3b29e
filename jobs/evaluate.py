"""Measure a run, or a model: against the truth of a mock survey, beside other detectors, or by injected lines.

--run RUN --truth FILE   a finished search of a mock survey: recall of its Lya lines by S/N, position, false hits by
                         kind of spectrum, the cuts on each kind, whether q_value holds -> RUN/evaluation.json
--mock PLATES --out DIR  the model, the classical matched filter and an oracle at equal false-hit rates, on fresh mock
                         plates of clean and of contaminated galaxies -> DIR/detectors.json and .png
--inject ROOT --out DIR  lines of known S/N added to every readable spectrum below ROOT, and to mock galaxies; what is
                         a hit without any -> DIR/injection.json, recovery.png and hits.png
--gate                   whether the model may be used by runs marked production: recall, false hits and calibration on
                         the golden set of run.gate -> MODEL/gate.json (--out DIR: DIR/gate.json); exit code 3 if not
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lensspark.session import EXIT_ATTENTION, EXIT_DONE, job_parser, run_job, spark_session  # noqa: E402


def main(argv=None):
    parser = job_parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", metavar="RUN", help="folder or URL of a finished run")
    what.add_argument("--mock", metavar="PLATES", type=int, help="plates of clean galaxies; a third more of others")
    what.add_argument("--inject", metavar="ROOT", help="folder or URL of a survey")
    what.add_argument("--gate", action="store_true", help="the model and the gate of the configuration")
    parser.add_argument("--truth", metavar="FILE", help="with --run: truth.parquet of the survey that was searched")
    parser.add_argument("--out", metavar="DIR", help="with --mock, --inject, --gate: folder for the products")
    parser.add_argument("--basis", metavar="FILE", help="with --mock: eigenbasis of the galaxies (default: shipped)")
    parser.add_argument("--first-plate", type=int, default=40000, help="with --mock: number of the first plate")
    parser.add_argument("--seed", type=int, default=7, help="with --mock")
    return run_job(parser, work, argv)


def work(args, config):
    needed, name = (args.truth, "--truth") if args.run else (args.out, "--out")
    if not needed and not args.gate:
        raise ValueError(f"{name} is missing; see --help")
    if args.mock is not None and args.mock < 1:
        raise ValueError(f"--mock {args.mock}: expected at least one plate")
    from lensspark import detectors, evaluation, gate, injection

    spark = spark_session("lensspark evaluate", args.master)
    if args.run:
        print(evaluation.of_run(spark, args.run, args.truth))
    elif args.mock:
        print(detectors.on_model(spark, config, args.mock, args.first_plate, args.seed, args.basis, args.out))
    elif args.inject:
        print(injection.on_model(spark, config, args.inject, args.out))
    else:
        verdict = gate.measure(spark, config, args.out)
        print(gate.text(verdict))
        return EXIT_DONE if verdict["passed"] else EXIT_ATTENTION
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
