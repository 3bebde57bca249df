"""A policy of plain layers: what it needs of normalisation, images and clipping is inside, training is not."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from sb3_trl.deployment.actions import head
from sb3_trl.deployment.memory import core
from sb3_trl.deployment.normalization import Statistics
from sb3_trl.deployment.observations import Observations
from sb3_trl.deployment.ports import Port, example
from sb3_trl.policies.masks import sizes_of

__all__ = ["DeployedPolicy", "check_policy"]

#: Methods that decide how a policy acts: one that overrides any of them is not the policy that its layers say.
_DECIDING = (
    "predict",
    "_predict",
    "obs_to_tensor",
    "extract_features",
    "get_distribution",
    "_get_action_dist_from_latent",
)
_KNOWN = ("stable_baselines3.", "sb3_contrib.", "sb3_trl.")


class DeployedPolicy(nn.Module):
    """Observations (and noise, masks, memory) in, actions (and memory) out; float32 operations on the CPU.

    :param policy: Any of SB3's actor-critic policies.
    :param raw: The space of observations before normalisation.
    :param statistics: How observations are normalised, by key.
    :param channels_last: Keys of images that come with their channels last; ``None`` for the observation itself.
    :param noise: Whether actions are drawn, with noise as an input.
    :param action_masks: Whether there is an input that says which actions are possible.
    :raises ValueError: for a policy that cannot be exported.
    """

    def __init__(
        self,
        policy: Any,
        raw: spaces.Space,
        statistics: Mapping[str | None, Statistics],
        channels_last: set[str | None],
        noise: bool = False,
        action_masks: bool = False,
    ) -> None:
        super().__init__()
        check_policy(policy)
        self.observations = Observations(
            policy.observation_space, raw, channels_last, statistics, policy.normalize_images
        )
        extractor = getattr(policy, "pi_features_extractor", policy.features_extractor)
        self.extractor = copy.deepcopy(extractor).cpu()
        self.core = core(policy)
        self.head = head(policy.action_dist, policy, noise)
        self.inputs = [*self.observations.ports, *self._others(policy, noise, action_masks)]
        self.outputs = [self.head.output(), *(s._replace(name=f"next_state.{s.name}") for s in self.core.states)]
        self.float().eval().requires_grad_(False)

    def _others(self, policy: Any, noise: bool, action_masks: bool) -> list[Port]:
        """Return the inputs that are not observations."""
        ports = []
        if noise:
            kind = f"independent {self.head.noise} numbers; 0 gives the deterministic action"
            ports.append(Port("noise", "float32", (self.head.noise_size,), kind))
        if action_masks:
            size = sum(sizes_of(policy.action_space))
            ports.append(Port("action_masks", "bool", (size,), "which actions are possible"))
        if self.core.states:
            ports += [state._replace(name=f"state.{state.name}") for state in self.core.states]
            ports.append(Port("episode_start", "bool", (), "where an episode begins, and the state is empty"))
        return ports

    def forward(self, *tensors: Tensor) -> Any:
        """Return the actions, with memory a tuple of the actions and the new memory.

        :param tensors: As ``inputs`` lists them.
        """
        given = dict(zip((port.name for port in self.inputs), tensors, strict=True))
        features = self.extractor(self.observations(*(given[port.name] for port in self.observations.ports)))
        state = tuple(given[f"state.{port.name}"] for port in self.core.states)
        latent, new_state = self.core(features, state, given.get("episode_start"))
        actions = self.head(latent, given.get("noise"), given.get("action_masks"))
        return (actions, *new_state) if self.core.states else actions

    def example(self, batch: int) -> tuple[Tensor, ...]:
        """Return inputs of the right types and shapes."""
        return tuple(example(port, batch) for port in self.inputs)


def check_policy(policy: Any) -> None:
    """Check that a policy acts as its layers say.

    :raises ValueError: if it does not, or may not.
    """
    name = type(policy).__name__
    if not isinstance(policy, (ActorCriticPolicy, MaskableActorCriticPolicy)):
        raise ValueError(
            f"A {name} cannot be exported: known are actor-critic policies, those of this package's algorithms, PPO, "
            "A2C, TRPO, MaskablePPO and RecurrentPPO."
        )
    for method in _DECIDING:
        function = getattr(type(policy), method)
        if not f"{function.__module__}.".startswith(_KNOWN) or method in vars(policy):
            raise ValueError(
                f"{name} has a {method}() of its own, which decides how it acts and which the exported file would not "
                "have: only layers (features extractor, mlp_extractor, action_net) may be your own."
            )
    if any(tensor.dtype not in (th.float32, th.float64) for tensor in policy.parameters()):
        raise ValueError(f"{name} has parameters that are neither float32 nor float64.")
