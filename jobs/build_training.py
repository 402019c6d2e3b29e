"""Build a training set of artificial spectra: DATA/train, DATA/validation, DATA/test.

1. Split the plates into training, validation and test.
2. Observe each plate's fibres: galaxies from an eigenbasis, BOSS-like sky and noise, lines, contaminants.
3. Write the spectra, cut to the window, with their labels as Parquet, one task per plate.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lensspark.session import job_parser, run_job, spark_session  # noqa: E402


def main(argv=None):
    parser = job_parser(__doc__)
    parser.add_argument("--out", required=True, metavar="DATA", help="new folder for the training set")
    parser.add_argument("--templates", action="store_true", required=True, help="galaxies from an eigenbasis")
    parser.add_argument("--basis", metavar="FILE", nargs="+",
                        help="eigenbases of the galaxies, taken in turn by the plates (default: the shipped one)")
    parser.add_argument("--plates", type=int, default=200, help="mock plates (default 200)")
    parser.add_argument("--first-plate", type=int, default=20000, help="number of the first plate (default 20000)")
    parser.add_argument("--fibres", type=int, default=1000, help="spectra per plate, up to 1000 (default 1000)")
    return run_job(parser, work, argv)


def work(args, config):
    from lensspark.training_set import from_templates

    if args.plates < 1 or not 1 <= args.fibres <= 1000:
        raise ValueError(f"--plates {args.plates} --fibres {args.fibres}: expected at least 1, and 1 to 1000")
    spark = spark_session("lensspark build_training", args.master)
    plates = list(range(args.first_plate, args.first_plate + args.plates))
    counts = from_templates(spark, args.out, config, plates, args.fibres, args.basis)
    print(f"{args.out}: " + ", ".join(f"{counts[name]:,} {name}" for name in sorted(counts)))


if __name__ == "__main__":
    sys.exit(main())
