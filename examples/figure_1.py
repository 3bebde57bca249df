"""Fig. 1 of the TRPL paper: what lies between two Gaussians, according to each projection.

    python examples/figure_1.py --out docs/img/figure_1.png

Two Gaussians of equal entropy; the new one is projected onto ever smaller trust regions around the old one. Every
projection interpolates, with a weight 1/(1 + eta) on the new Gaussian: Frobenius the covariances, W2 their square
roots (in the metric of the old one), KL the precisions.
"""

import argparse
from pathlib import Path

import torch

from sb3_trl.papers.interpolation import draw_interpolations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("figure_1.png"))
    args = parser.parse_args()

    torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw_interpolations().savefig(args.out, dpi=150)
    print(f"saved {args.out}")


if __name__ == "__main__":
    main()
