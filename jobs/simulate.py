"""Simulate a survey in BOSS's layout, with the truth of every spectrum.

1. Draw plates of 1000 fibres: galaxies, sky, noise, background lines and what imitates them ([mock] of conf/).
2. Write each plate in one Spark task: spPlate and spZbest, lite spec files, or both.
3. Add a few broken files, on a plate of their own, and the survey's spAll and platelist.
4. Write truth.parquet, the last file: what each spectrum holds.

The same arguments give the same files, however many cores there are. --out is a new folder or fsspec URL that all
workers reach; --layout mixed writes lite files of the first plate beside the spPlate files of all.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lensspark.session import job_parser, run_job, spark_session  # noqa: E402


def main(argv=None):
    parser = job_parser(__doc__)
    parser.add_argument("--out", required=True, help="folder or URL of the survey")
    parser.add_argument("--plates", type=int, default=2, help="plates (default 2)")
    parser.add_argument("--fibres", type=int, default=1000, help="fibres of each plate (default 1000)")
    parser.add_argument("--first-plate", type=int, default=4000, help="number of the first plate (default 4000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--layout", default="mixed", help="mixed (default), spplate, lite or both")
    parser.add_argument("--broken", type=int, default=4, help="broken files to add (default 4)")
    parser.add_argument("--preset", choices=("survey", "training"), default="survey", help="[mock] or [mock_training]")
    parser.add_argument("--basis", help="eigenspectra of the galaxies, .npz (default: the shipped ones)")
    return run_job(parser, work, argv)


def work(args, config):
    from lensspark.config import resource
    from lensspark.eigen import Basis
    from lensspark.simulate import Plan, simulate

    plan = Plan(args.first_plate, args.plates, args.fibres, args.seed, args.layout, args.broken)
    basis = Basis.load(args.basis or resource("data/eigenbasis.npz"))
    settings = config.mock_training if args.preset == "training" else config.mock
    simulate(lambda: spark_session("lensspark simulate", args.master), args.out, plan, settings, basis)


if __name__ == "__main__":
    sys.exit(main())
