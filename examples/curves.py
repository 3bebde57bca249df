"""Draw how a run learned, and how far each of its updates moved the policy.

    python examples/curves.py
    python examples/curves.py --run runs/walker --out walker.png

The run is a folder that examples/train.py has left; the numbers are those that TensorBoard shows.
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")  # no screen is needed

import matplotlib.pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Return steps and values of every number in the newest run of a folder of TensorBoard's."""
    runs = sorted(folder.glob("*_*"), key=lambda run: int(run.name.rpartition("_")[2]))
    if not runs:
        sys.exit(f"There is no run in {folder}.")
    events = EventAccumulator(str(runs[-1])).Reload()
    series = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    return {tag: ([one.step for one in all_], [one.value for one in all_]) for tag, all_ in series.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/train"))
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    args = parser.parse_args()

    logged = read(args.run / "tensorboard")
    if "trust_region/kl_mean" not in logged:
        sys.exit("Nothing to draw: the run is shorter than two updates.")

    figure, (learning, divergence, outside) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    if "rollout/ep_rew_mean" in logged:  # not before an episode has ended
        learning.plot(*logged["rollout/ep_rew_mean"])
    learning.set(title="return of training episodes", xlabel="steps")

    divergence.plot(*logged["trust_region/kl_mean"], label="mean")
    divergence.plot(*logged["trust_region/kl_max"], label="largest")
    divergence.plot(*logged["trust_region/kl_bound"], "k--", label="bound")
    divergence.set(title="KL(acting ‖ old) of an update's states, nats", xlabel="steps", yscale="log")
    divergence.legend()

    outside.plot(*logged["trust_region/projected_fraction"])
    outside.set(title="share of states that were projected", xlabel="steps", ylim=(0, 1))

    figure.savefig(args.out, dpi=110)
    plt.close(figure)
    updates = len(logged["trust_region/kl_mean"][0])
    mean = sum(logged["trust_region/kl_mean"][1]) / updates
    print(f"{args.out}: {updates} updates, which moved the policy by {mean:.2g} nats on average")


if __name__ == "__main__":
    main()
