"""Play an exported policy where there is nothing but NumPy and onnxruntime: the actions are those of the agent.

python robot.py policy.onnx episode.npz
"""

import importlib.util
import sys

import numpy as np
import onnxruntime


def main(policy: str, path: str) -> None:
    for name in ("torch", "stable_baselines3", "gymnasium", "sb3_trl"):
        assert importlib.util.find_spec(name) is None, f"{name} is installed: that is no robot"
    session = onnxruntime.InferenceSession(policy, providers=["CPUExecutionProvider"])
    episode = np.load(path)
    actions = np.stack([session.run(["action"], {"observation": one[None]})[0][0] for one in episode["observations"]])
    assert len(actions) == 200
    assert np.ptp(actions) > 0.5, "it acts"
    difference = np.abs(actions - episode["actions"]).max()
    assert difference <= 1e-5, f"the actions differ by {difference:.2g}"
    print(f"{len(actions)} actions without torch, {difference:.1e} from the agent's")


if __name__ == "__main__":
    main(*sys.argv[1:])
