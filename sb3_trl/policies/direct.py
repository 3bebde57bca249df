"""Small networks without the calls around their layers, which serve hooks and take as long as the layers themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

from stable_baselines3.common.preprocessing import preprocess_obs
from torch import Tensor, nn

from sb3_trl.policies.actor_critic import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_trl.policies.forward import ForwardPass
from sb3_trl.policies.masks import unmasked

__all__ = ["direct", "has_hooks"]


def has_hooks(layer: Any) -> bool:
    """Return whether a layer's call does more than the layer."""
    return isinstance(layer, nn.Module) and bool(layer._forward_hooks or layer._forward_pre_hooks)


def direct(module: nn.Module) -> Callable[..., Any]:
    """Return what a module does; the module itself where somebody has hooked into it.

    Holds the layers of now, and looks at their parameters when it is called.

    :param module: Any; what is gained is most for a ``ForwardPass`` of this package's policies.
    """
    if has_hooks(module) or module._backward_hooks or module._backward_pre_hooks:
        return module
    if type(module) is nn.Sequential:
        functions = [direct(layer) for layer in module]
        return lambda x: reduce(lambda x, function: function(x), functions, x)
    if type(module) is ForwardPass:
        policy: Any = module.policy
        make = {"predicted": _predicted, "predict_values": _values}.get(module.method)
        is_own = type(policy) in (MlpPolicy, CnnPolicy, MultiInputPolicy)
        return make(policy) if is_own and make is not None else module
    return module.forward


def _predicted(policy: MlpPolicy) -> Callable[[Any], Any]:
    """What ``policy.predicted`` does."""
    features, layers = _features(policy, policy.pi_features_extractor), direct(policy.mlp_extractor.policy_net)
    heads = [direct(head) for head in policy.heads()]
    distribution: Any = policy.action_dist

    def predicted(observations: Any) -> Any:
        observations, masks = unmasked(observations)
        latent = layers(features(observations))
        new = distribution.from_outputs(*(head(latent) for head in heads))
        return new if masks is None else distribution.without_impossible(new, masks)

    return predicted


def _values(policy: MlpPolicy) -> Callable[[Any], Tensor]:
    """What ``policy.predict_values`` does."""
    features, layers = _features(policy, policy.vf_features_extractor), direct(policy.mlp_extractor.value_net)
    head = direct(policy.value_net)
    return lambda observations: head(layers(features(unmasked(observations)[0])))


def _features(policy: MlpPolicy, extractor: nn.Module) -> Callable[[Any], Tensor]:
    """What ``policy.extract_features`` does with one of the extractors."""
    extract = direct(extractor)
    options = {"normalize_images": policy.normalize_images}
    return lambda observations: extract(preprocess_obs(observations, policy.observation_space, **options))
