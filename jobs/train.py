"""Train the network on a training set of build_training.py: writes a model's folder.

1. Read the set through petastorm, make the network's input with the search's own preprocessing.
2. Fit with Keras; after each epoch measure the recall on the validation plates and keep a checkpoint.
3. Write weights, configuration, eigenbasis and card, each with its sha256.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lensspark.config import resource  # noqa: E402
from lensspark.session import job_parser, run_job  # noqa: E402


def main(argv=None):
    parser = job_parser(__doc__)
    parser.add_argument("--data", required=True, metavar="DATA", help="folder made by build_training.py")
    parser.add_argument("--out", required=True, metavar="MODEL", help="folder for the model")
    parser.add_argument("--basis", metavar="FILE", help="eigenbasis of the foreground fit (default: the shipped one)")
    parser.add_argument("--name", default="default", help="the model's name in its card")
    parser.add_argument("--resume", action="store_true", help="go on from the last finished epoch in MODEL")
    return run_job(parser, work, argv)


def work(args, config):
    from lensspark.training import train

    basis = Path(args.basis or resource("data/eigenbasis.npz"))
    model = train(args.data, args.out, config, basis, args.name, args.resume)
    print(f"{args.out}: model {model.sha256[:12]}")


if __name__ == "__main__":
    sys.exit(main())
