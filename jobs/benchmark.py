"""Measure the speed of this machine's lensspark beside the machine's limits, in one run: DIR/benchmark.json, .md, .png.

1. Write PLATES mock plates of 1,000 fibres below DIR (130 MB each), and lite files; a second run finds them there.
2. One core, stage by stage, in turn: reading, preparing, the network on each engine, locating, the matched filter.
3. All cores at once without Spark: reading, inference, and both: the limits of a whole search.
4. Whole searches, as jobs/predict.py, in turn with the limits: of PLATES and, by links, four times as many, once of 8
   and more; in f32 and bf16, and with the network on every spectrum; memory, start-up.
5. Partition sizes, a cold cache; PLATES and a million spectra by one and two executors of one core; with --training,
   the training's feed and steps.
6. A search of a million spectra: the plates once more, linked, under other versions of the pipeline.

Rates are medians of ROUNDS, with the lowest and highest. An hour on two cores for the defaults; --parts runs some.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lensspark.session import job_parser, run_job  # noqa: E402

PARTS = ("core", "scale", "partitions", "cold", "executors", "million")


def main(argv=None):
    parser = job_parser(__doc__)
    parser.add_argument("--out", required=True, metavar="DIR", help="local folder for plates, runs and results")
    parser.add_argument("--plates", type=int, default=64, help="plates of the largest search (default 64)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default 3)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART",
                        help=f"what is measured: {', '.join(PARTS)} (default all)")
    parser.add_argument("--training", metavar="DATA", help="training set: measure its feed and the steps as well")
    return run_job(parser, work, argv)


def work(args, config):
    from lensspark.benchmark import measure

    print(measure(Path(args.out), config, args.plates, args.rounds, args.parts, args.training))


if __name__ == "__main__":
    sys.exit(main())
