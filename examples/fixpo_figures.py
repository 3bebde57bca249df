"""Draw Figs 1 and 2 of the FixPO paper from one run for each coefficient.

Above: how many gradient steps the fixup phase takes in each update, for several target coefficients C_β. Below: the
largest KL divergence and β, step by step within some consecutive updates. ``sb3-trl reproduce fixpo-fig1`` draws
the first from many seeds, ``fixpo-fig2`` the second.

    python examples/fixpo_figures.py --env Walker2d-v5 --timesteps 200000 --out fixpo_figures.png
"""

import argparse

import torch as th
from matplotlib.figure import Figure

from sb3_trl.papers.recording import draw_steps, fixup_steps, record, shown_updates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Walker2d-v5")
    parser.add_argument("--timesteps", type=int, default=1_000_000)
    parser.add_argument("--coefficients", nargs="+", type=float, default=[1, 2, 3, 10])
    parser.add_argument("--kl-bound", type=float, default=0.5)
    parser.add_argument("--n-envs", type=int, default=64)
    parser.add_argument("--n-steps", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--updates", type=int, default=5, help="updates shown step by step, in the middle of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="fixpo_figures.png")
    args = parser.parse_args()
    th.set_num_threads(1)

    shown = args.coefficients[-2 if len(args.coefficients) > 1 else 0]
    settings = {"n_envs": args.n_envs, "n_steps": args.n_steps, "batch_size": args.batch_size}
    figure = Figure(figsize=(8, 7), layout="constrained")
    above, below = figure.subplots(2, 1)
    for coefficient in args.coefficients:
        bounds = {"kl_bound": args.kl_bound, "kl_target_coef": coefficient}
        history = record(args.env, args.timesteps, args.seed, **settings, **bounds)
        steps = fixup_steps(history)
        share = 100 * steps.sum() / (history.kind != "end").sum()
        print(f"C_β = {coefficient:g}: {steps.sum()} fixup steps, {share:.2f} % of all gradient steps", flush=True)
        above.plot(steps.index, steps, label=f"C_β = {coefficient:g} ({share:.2f} % of all steps)")
        if coefficient == shown:
            draw_steps(below, shown_updates(history, args.updates), args.kl_bound, coefficient)
            below.set_title(f"Gradient steps of {args.updates} consecutive updates, C_β = {coefficient:g}")
            figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    above.set(title=f"{args.env}: steps of the fixup phase in an update", xlabel="environment steps")
    above.legend()
    figure.savefig(args.out, dpi=120)


if __name__ == "__main__":
    main()
