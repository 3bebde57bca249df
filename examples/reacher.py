"""Solve the 5-link ReacherSparse with a script: inverse kinematics, then a spring and a damper at every joint.

python examples/reacher.py --out docs/img/reacher.png    # MUJOCO_GL=egl where there is no display
"""

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np

import sb3_trl.envs  # noqa: F401  registers sb3_trl/ReacherSparse5-v0

LINK = 0.1  # m
TORQUE = 200.0  # N·m, of an action of 1
STIFFNESS, DAMPING = 16.0, 7.0  # critical with the joints' own damping of 1: inertia is 1


def fingertip(angles: np.ndarray) -> np.ndarray:
    """Return the fingertip's position x, y, in m."""
    directions = np.cumsum(angles)
    return LINK * np.array([np.cos(directions).sum(), np.sin(directions).sum()])


def jacobian(angles: np.ndarray) -> np.ndarray:
    """Return the derivative of ``fingertip``, ``(2, 5)``: a joint turns all links from its own on."""
    directions = np.cumsum(angles)
    links = LINK * np.stack([-np.sin(directions), np.cos(directions)])
    return links[:, ::-1].cumsum(1)[:, ::-1]


def inverse_kinematics(goal: np.ndarray) -> np.ndarray:
    """Return angles that bring the fingertip to a goal within reach, by damped least squares from a bent arm."""
    angles = np.full(5, 0.3 if goal[1] >= 0 else -0.3)
    for _ in range(300):
        j = jacobian(angles)
        step = (goal - fingertip(angles)).clip(-0.05, 0.05)
        angles = angles + j.T @ np.linalg.solve(j @ j.T + 1e-4 * np.eye(2), step)
    return angles


def act(observation: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the action that pulls the joints towards their target angles."""
    angles, velocities = np.arctan2(observation[5:10], observation[:5]), observation[12:17]
    error = target - angles
    error[0] = np.arctan2(np.sin(error[0]), np.cos(error[0]))  # the first joint turns freely: the short way round
    torque = STIFFNESS * error - DAMPING * velocities
    return (torque / TORQUE).clip(-1, 1).astype(np.float32)


def run_episode(env: gym.Env, seed: int) -> tuple[float, dict[str, float], list[np.ndarray]]:
    """Return the episode's return, the last step's info, and a picture of every step if the environment draws."""
    observation, _ = env.reset(seed=seed)
    target = inverse_kinematics(observation[10:12])
    pictures = [env.render()] if env.render_mode else []
    total, truncated = 0.0, False
    while not truncated:
        observation, reward, _, truncated, info = env.step(act(observation, target))
        total += float(reward)
        if env.render_mode:
            pictures.append(env.render())
    return total, info, pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--out", type=Path, help="a picture of the first episode")
    args = parser.parse_args()

    env = gym.make("sb3_trl/ReacherSparse5-v0")
    results = [run_episode(env, seed)[:2] for seed in range(args.episodes)]
    print(f"mean return {np.mean([total for total, _ in results]):.3f}")
    print(f"largest final distance {max(info['distance'] for _, info in results):.5f} m")
    if args.out:
        draw(args.out)


def draw(path: Path) -> None:
    """Save the arm at the start, on its way, and in the last step."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    env = gym.make("sb3_trl/ReacherSparse5-v0", render_mode="rgb_array", width=480, height=480)
    _, _, pictures = run_episode(env, seed=0)
    env.close()
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
    for axis, step in zip(axes, (0, 15, 200), strict=True):
        axis.imshow(pictures[step])
        axis.set_title("at reset" if step == 0 else f"step {step}", fontsize=11)
        axis.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
