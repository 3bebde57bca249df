"""Draw Figs 1 and 2 of the FixPO paper from real runs.

Above: how many gradient steps the fixup phase takes in each update, for several target coefficients C_β. Below: the
largest KL divergence and β, step by step within some consecutive updates; steps of the fixup phase are dots.

    python examples/fixpo_figures.py --env Walker2d-v5 --timesteps 200000 --out fixpo_figures.png
"""

import argparse

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trl import FixPO


class RecordedFixPO(FixPO):
    """Keeps KL and β of every gradient step."""

    def _setup_model(self) -> None:
        super()._setup_model()
        self.history: list[tuple[float, float, bool]] = []
        self.in_fixup = False
        step = self.dual.step

        def recorded(state: th.Tensor, divergence: th.Tensor) -> th.Tensor:
            state = step(state, divergence)
            self.history.append((divergence.item(), state[0].item(), self.in_fixup))
            return state

        self.dual.step = recorded

    def _fixup_phase(self, *arguments) -> int:
        self.in_fixup = True
        steps = super()._fixup_phase(*arguments)
        self.in_fixup = False
        return steps


class FixupSteps(BaseCallback):
    """Keeps, after every update, the timestep, the fixup steps and their share, and the number of steps so far."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, float, float, int]] = []

    def _on_step(self) -> bool:
        return True

    def _keep(self) -> None:
        log = self.logger.name_to_value
        if "fixpo/fixup_steps" in log:
            steps, share = log["fixpo/fixup_steps"], log["fixpo/fixup_share"]
            self.rows.append((self.num_timesteps, steps, share, len(self.model.history)))

    def _on_rollout_start(self) -> None:
        self._keep()

    def _on_training_end(self) -> None:
        self._keep()


def train(env: str, coefficient: float, args: argparse.Namespace) -> tuple[RecordedFixPO, list]:
    """Train with the settings of the paper."""
    vec_env = VecNormalize(make_vec_env(env, args.n_envs, seed=args.seed))
    model = RecordedFixPO(
        "MlpPolicy",
        vec_env,
        n_steps=args.n_steps,
        batch_size=args.batch_size,
        kl_bound=args.kl_bound,
        kl_target_coef=coefficient,
        learning_rate="lin_3e-4",
        clip_range_vf=0.2,
        normalize_advantage=False,
        vf_coef=0.1,
        policy_kwargs={"log_std_init": -0.5},
        compile=False,
        seed=args.seed,
        device="cpu",
    )
    callback = FixupSteps()
    model.learn(args.timesteps, callback)
    return model, callback.rows


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

    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 7), layout="constrained")
    for i, coefficient in enumerate(args.coefficients):
        model, rows = train(args.env, coefficient, args)
        timesteps, steps, _, ends = zip(*rows, strict=True)
        taken = sum(in_fixup for *_, in_fixup in model.history)
        share = taken / len(model.history)
        print(f"C_β = {coefficient:g}: {taken} fixup steps, {100 * share:.2f} % of all gradient steps", flush=True)
        above.plot(timesteps, steps, color=f"C{i}", label=f"C_β = {coefficient:g} ({100 * share:.2f} % of all steps)")
        if coefficient == args.coefficients[-2 if len(args.coefficients) > 1 else 0]:
            draw_steps(below, model, [0, *ends], args.updates)
    above.set(title=f"{args.env}: steps of the fixup phase in an update", xlabel="environment steps")
    above.legend()
    figure.savefig(args.out, dpi=120)


def draw_steps(axis: plt.Axes, model: RecordedFixPO, ends: list[int], n_updates: int) -> None:
    """Draw KL and β of every gradient step of some consecutive updates from the middle of training."""
    first = max((len(ends) - 1 - n_updates) // 2, 0)
    cuts = ends[first : first + n_updates + 1]
    kl, beta, in_fixup = zip(*model.history[cuts[0] : cuts[-1]], strict=True)
    axis.plot(kl, linewidth=0.8, label="largest KL of the minibatch")
    fixups = [i for i, inside in enumerate(in_fixup) if inside]
    axis.plot(fixups, [kl[i] for i in fixups], "C3.", label="in the fixup phase")
    axis.axhline(model.kl_bound, color="C3", linestyle="--", linewidth=0.8, label="ε_KL")
    axis.axhline(model.kl_bound / model.kl_target_coef, color="grey", linestyle="--", linewidth=0.8, label="ε_KL / C_β")
    for cut in cuts:
        axis.axvline(cut - cuts[0], color="grey", linewidth=0.5)
    axis.set(
        title=f"Gradient steps of {len(cuts) - 1} consecutive updates, C_β = {model.kl_target_coef:g}", ylabel="nats"
    )
    twin = axis.twinx()
    twin.plot(beta, color="C1", linewidth=0.8, label="β")
    twin.set_ylabel("β")
    lines = [*axis.get_legend_handles_labels()[0], *twin.get_legend_handles_labels()[0]]
    axis.legend(handles=lines, loc="upper right", fontsize="small")


if __name__ == "__main__":
    main()
