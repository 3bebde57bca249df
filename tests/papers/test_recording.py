"""FixPO watched step by step."""

import numpy as np
import pandas as pd
from stable_baselines3.common.callbacks import BaseCallback

from sb3_trl.papers.recording import RecordedFixPO, fixup_steps, shown_updates


def test_the_recording_has_every_step():
    """The fixup steps of every update are those of the log; each update has its epochs; KL and β are numbers."""
    logged = []

    class Keep(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _keep(self) -> None:
            if "fixpo/fixup_steps" in self.logger.name_to_value:
                logged.append(self.logger.name_to_value["fixpo/fixup_steps"])

        _on_rollout_start = _on_training_end = _keep

    model = RecordedFixPO(
        "MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=32, n_epochs=3, kl_bound=1e-4, kl_target_coef=1, seed=0
    )
    model.learn(256, Keep())
    history = pd.DataFrame(model.history, columns=["timesteps", "update", "kind", "kl", "beta"])
    assert fixup_steps(history).tolist() == logged
    assert sum(logged) > 0
    kinds = history.groupby(["update", "kind"]).size().unstack(fill_value=0)
    assert kinds.primary.tolist() == [6] * 4
    assert kinds.end.tolist() == [3] * 4
    steps = history[history.kind != "end"]
    assert np.isfinite(steps[["kl", "beta"]]).all(axis=None)
    assert shown_updates(history, 2)["update"].unique().tolist() == [1, 2]
