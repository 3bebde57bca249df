"""What callbacks change while training runs, and one that compares what was stored with the policy that acted."""

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from support import vec_env
from torch import nn

from sb3_trl import LeanTRPO

SMALL = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}


def make(cls, env=None, policy="MlpPolicy", compile=False, **kwargs):
    options = SMALL | kwargs
    options["policy_kwargs"] = {"net_arch": [8]} | options.get("policy_kwargs", {})
    if cls is LeanTRPO:
        options.pop("n_epochs")
    else:
        options["compile"] = compile
    return cls(policy, vec_env(2) if env is None else env, **options)


class Calls(BaseCallback):
    """Calls a function of the model at the start of every rollout, or after every step of one.

    :param function: Called with the model and how often it has been called before.
    :param when: ``"rollout"`` or ``"step"``.
    """

    def __init__(self, function, when: str = "rollout") -> None:
        super().__init__()
        self.function, self.when, self.n = function, when, 0

    def _call(self, when: str) -> None:
        if when == self.when:
            self.function(self.model, self.n)
            self.n += 1

    def _on_rollout_start(self) -> None:
        self._call("rollout")

    def _on_step(self) -> bool:
        self._call("step")
        return True


def scale_of(policy) -> th.Tensor:
    if hasattr(policy, "log_std"):
        return policy.log_std
    return (
        policy.scale_net.raw
        if hasattr(policy, "scale_net") and policy.scale_net.linear is None
        else policy.action_net.bias
    )


def anneal(model, n: int) -> None:
    """What people write to anneal a standard deviation; here it jumps."""
    scale_of(model.policy).data.fill_(-2.0 if n % 2 else 0.5)


def disturb(model, n: int) -> None:
    """All parameters, in place, as after an optimiser's step."""
    with th.no_grad():
        for p in model.policy.parameters():
            p.add_(0.03 * th.randn_like(p))


def exchange(model, n: int) -> None:
    """The tensors themselves, as ``vector_to_parameters`` does."""
    vector = nn.utils.parameters_to_vector(p.float() for p in model.policy.parameters())
    nn.utils.vector_to_parameters(vector + 0.01, model.policy.parameters())


def replace(model, n: int) -> None:
    """A layer."""
    head = model.policy.action_net
    model.policy.action_net = nn.Linear(head.in_features, head.out_features)


def load(model, n: int) -> None:
    """The weights of another, as in population-based training."""
    model.policy.load_state_dict({key: 1.02 * value + 0.01 for key, value in model.policy.state_dict().items()})


CHANGES = [anneal, disturb, exchange, replace, load]


class Acting(Calls):
    """Asks the policy that has acted for its log-probabilities and values, before it is changed."""

    def __init__(self, change, when: str) -> None:
        super().__init__(change, when)
        self.said: list[list[np.ndarray]] = []
        self.differences: list[np.ndarray] = []

    def _on_step(self) -> bool:
        policy, observations = self.model.policy, self.model._last_obs
        with th.no_grad():
            tensor, _ = policy.obs_to_tensor(observations)
            distribution, values = policy.get_distribution(tensor), policy.predict_values(tensor)
            log_probs = distribution.log_prob(th.as_tensor(self.locals["actions"], device=policy.device))
            if hasattr(policy, "log_std") or hasattr(policy, "scale_net"):
                mode, std = (x.cpu().numpy() for x in (distribution.mode(), distribution.distribution.stddev))
                self.differences.append((self.locals["actions"].reshape(mode.shape) - mode) / std)
        self.said[-1].append(np.stack([x.cpu().numpy() for x in (log_probs, values.flatten())]))
        return super()._on_step()

    def _on_rollout_start(self) -> None:
        self.said.append([])
        super()._on_rollout_start()

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer
        expected = np.stack(self.said[-1])
        np.testing.assert_allclose(buffer.log_probs, expected[:, 0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(buffer.values, expected[:, 1], rtol=1e-5, atol=1e-5)
