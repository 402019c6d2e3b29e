"""Build a training set of artificial spectra: DATA/train, DATA/validation, DATA/test.

With --spectra, the recipe of Li et al. (2018) on a survey's own spectra:
1. Read the survey once; keep galaxies of the sample and sky fibres of each plate (DATA/backdrops).
2. Find the galaxies' eigenvectors in bins of redshift, one task per bin (DATA/galaxies).
3. Draw artificial galaxies, put the survey's sky and noise before them and lines into them.
With --templates, galaxies from an eigenbasis under BOSS-like sky and noise: no spectra are needed.

Either way plates are split whole, and spectra are cut to the window and written with their labels as Parquet.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lensspark.session import job_parser, run_job, spark_session  # noqa: E402


def main(argv=None):
    parser = job_parser(__doc__)
    parser.add_argument("--out", required=True, metavar="DATA", help="new folder for the training set")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--spectra", metavar="ROOT", help="galaxies, sky and noise from this survey tree")
    source.add_argument("--templates", action="store_true", help="galaxies from an eigenbasis")
    survey = parser.add_argument_group("with --spectra")
    survey.add_argument("--n", type=int, help="spectra in all (default: survey_training.spectra, 150000)")
    survey.add_argument("--make-basis", action="store_true", help="also DATA/basis.npz, an eigenbasis of the galaxies")
    mock = parser.add_argument_group("with --templates")
    mock.add_argument("--basis", metavar="FILE", nargs="+",
                      help="eigenbases of the galaxies, taken in turn by the plates (default: the shipped one)")
    mock.add_argument("--plates", type=int, default=200, help="mock plates (default 200)")
    mock.add_argument("--first-plate", type=int, default=20000, help="number of the first plate (default 20000)")
    mock.add_argument("--fibres", type=int, default=1000, help="spectra per plate, up to 1000 (default 1000)")
    return run_job(parser, work, argv)


def work(args, config):
    from lensspark.training_set import exit_code, from_survey, from_templates

    if args.plates < 1 or not 1 <= args.fibres <= 1000:
        raise ValueError(f"--plates {args.plates} --fibres {args.fibres}: expected at least 1, and 1 to 1000")
    spark = spark_session("lensspark build_training", args.master)
    if args.spectra:
        counts = from_survey(spark, args.spectra, args.out, config, args.n, args.make_basis)
    else:
        plates = list(range(args.first_plate, args.first_plate + args.plates))
        counts = from_templates(spark, args.out, config, plates, args.fibres, args.basis)
    print(f"{args.out}: " + ", ".join(f"{counts[name]:,} {name}" for name in sorted(counts)))
    return exit_code(args.out, config)


if __name__ == "__main__":
    sys.exit(main())
