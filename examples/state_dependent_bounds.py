"""A trust region whose size depends on the state: small near the upright pendulum, large elsewhere.

    python examples/state_dependent_bounds.py

A `StateBound` receives observations as the policy does. There is no VecNormalize here, so they are the
environment's own: cos(angle), sin(angle), velocity.
"""

import argparse

import torch as th

from sb3_trl import TRPL, StateBound


def mean_bound(observations: th.Tensor) -> th.Tensor:
    """From 0.01 where the pendulum stands (cos = 1) to 0.1 where it hangs (cos = -1)."""
    upright = (1 + observations[:, 0]) / 2
    return 0.1 - 0.09 * upright


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=20_000)
    args = parser.parse_args()

    th.set_num_threads(1)
    # hard=True: the policy that acts obeys the bound at every state of the batch, not only its projection.
    model = TRPL(
        "MlpPolicy",
        "Pendulum-v1",
        mean_bound=StateBound(mean_bound),
        learning_rate=3e-4,
        hard=True,
        seed=0,
        device="cpu",
    )
    model.learn(args.timesteps)

    log = model.logger.name_to_value
    print(f"mean bound over the last batch:        {log['trust_region/mean_bound']:.4f}")
    print(f"mean distance over the last batch:     {log['trust_region/mean_distance_mean']:.4f}")
    print(f"states outside their own trust region: {log['trust_region/violation_fraction']:.1%}")


if __name__ == "__main__":
    main()
