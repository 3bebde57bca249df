"""What the commands of smoke.sh leave in the current directory; runs in its virtual environment."""

import pickle
from pathlib import Path

import imageio
import numpy as np
import optuna
from matplotlib.image import imread
from stable_baselines3.common.monitor import load_results

import sb3_trl


def main() -> None:
    assert "site-packages" in sb3_trl.__file__, "the wheel, not the checkout"
    for algo, cls in {"trpl": sb3_trl.TRPL, "fixpo": sb3_trl.FixPO}.items():
        model = cls.load(f"logs/{algo}/Pendulum-v1_1/Pendulum-v1.zip", device="cpu")
        assert model.num_timesteps >= 20_000
        returns = load_results(f"rewards/{algo}")["r"]
        assert len(returns) == 5
        evaluations = np.load(f"logs/{algo}/Pendulum-v1_1/evaluations.npz")
        assert evaluations["timesteps"].tolist() == [5000, 10_000, 15_000, 20_000]
        assert list(Path("runs/Pendulum-v1").glob(f"{cls.__name__}_1/events*"))
        print(f"{algo:6} return {returns.mean():7.1f} after {model.num_timesteps} steps")
    curves = pickle.loads(Path("results.pkl").read_bytes())["Pendulum-v1"]
    assert curves.keys() == {"TRPL-logs", "FIXPO-logs"}
    assert all(np.isfinite(curve["mean"]).all() and len(curve["mean"]) == 4 for curve in curves.values())
    for picture in ("Training_Episodic_Reward.png", "Training_Episodic_Reward_2.png"):
        assert imread(picture)[..., :3].std() > 0.05
    (video,) = Path("logs/trpl/Pendulum-v1_1/videos").glob("*.mp4")
    frames = np.stack(list(imageio.v3.imiter(video)))
    assert len(frames) >= 100
    assert frames.std(0).max() > 10, "something moves"
    study = optuna.load_study(study_name="pendulum", storage="sqlite:///study.db")
    assert len(study.trials) == 2
    assert study.best_value < 0
    print("everything is there")


if __name__ == "__main__":
    main()
