"""``export``: a trained policy as a file that runs without this package, and that acts as ``model.predict`` does."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, VecTransposeImage

from sb3_trl.algorithms.masking import ActionMasking
from sb3_trl.deployment.check import check_actions
from sb3_trl.deployment.deployed import DeployedPolicy, check_policy
from sb3_trl.deployment.description import describe
from sb3_trl.deployment.exported import ExportedPolicy
from sb3_trl.deployment.formats import FORMATS, check_onnx, dumps, format_of
from sb3_trl.deployment.normalization import VecNormalizeArgument, find_vec_normalize, layers, statistics
from sb3_trl.deployment.ports import by_key
from sb3_trl.policies.masks import sizes_of

__all__ = ["export"]


def export(
    model: BaseAlgorithm | BasePolicy,
    path: str | Path,
    format: Literal["onnx", "torchscript", "torch"] | None = None,
    vec_normalize: VecNormalizeArgument = None,
    noise: bool = False,
    image_layout: Literal["HWC", "CHW"] | None = None,
    action_masks: bool | None = None,
) -> ExportedPolicy:
    """Write a policy to a file: environment's observations in, environment's actions out.

    Inside are the normalisation of observations, the order of channels and the scale of images, one-hot vectors, and
    what ``predict`` does to actions: clipping, or tanh and the space's scale. Every input and output has the batch as
    its first axis. The file's actions are compared with those of ``predict`` before it is handed over.

    :param model: An algorithm of this package, PPO, A2C, TRPO, MaskablePPO or RecurrentPPO; or its policy.
    :param path: Of the file, which is replaced.
    :param format: ``"onnx"`` (``.onnx``), ``"torchscript"`` (``.pt``) or ``"torch"`` (``.pt2``, of ``torch.export``);
        by default what the path's suffix says.
    :param vec_normalize: Whose statistics observations are normalised with: a ``VecNormalize``, or the path of a saved
        one. By default that of the model's environments, if it has any; ``False`` leaves normalisation out.
    :param noise: Whether there is an input ``noise`` by which actions are drawn: normal numbers for a ``Box``, Gumbel
        for ``Discrete`` and ``MultiDiscrete``, logistic for ``MultiBinary``. By default the policy is deterministic.
    :param image_layout: Whether images come with their channels last (``"HWC"``) or first (``"CHW"``); by default as
        the model's environments give them, and as the policy takes them if it has none.
    :param action_masks: Whether there is an input ``action_masks``; by default where the model has learned with masks:
        the environments of this package's algorithms have them, or it is sb3-contrib's MaskablePPO.
    :raises ValueError: if an argument is wrong, or the policy cannot be exported.
    :raises ImportError: if a package is not installed that the format needs.
    """
    path = Path(path)
    format_name = format_of(path, format)
    if not path.parent.is_dir():
        raise ValueError(f"{str(path)!r}: there is no folder {str(path.parent)!r} to write to.")
    if format_name == "onnx":
        check_onnx()
    policy = model.policy if isinstance(model, BaseAlgorithm) else model
    check_policy(policy)
    env = model.get_env() if isinstance(model, BaseAlgorithm) else None
    normalizer = find_vec_normalize(vec_normalize, env)
    known = statistics(normalizer, policy.observation_space)
    deployed = DeployedPolicy(
        policy,
        _raw_space(normalizer, policy),
        known,
        _channels_last(image_layout, policy.observation_space, env),
        noise,
        _takes_masks(action_masks, model, env),
    )
    metadata = dumps(describe(model, policy, deployed, known, env))
    with TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        written = Path(folder, path.name)
        _write(format_name, deployed, metadata, written)
        check_actions(policy, deployed, ExportedPolicy(written), known)
        os.replace(written, path)
    return ExportedPolicy(path)


def _write(format_name: str, deployed: DeployedPolicy, metadata: str, path: Path) -> None:
    try:
        FORMATS[format_name].write(deployed, metadata, path)
    except ImportError:
        raise
    except Exception as error:
        extractor = type(deployed.extractor).__name__
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"The policy cannot be exported with format={format_name!r}: {reason} Its features extractor is a "
            f"{extractor}; layers of your own have to be plain operations on tensors of any batch size."
        ) from error


def _raw_space(normalizer: VecNormalize | None, policy: Any) -> spaces.Space:
    """Return the space that observations have before normalisation, as far as its types go."""
    venv = None if normalizer is None else getattr(normalizer, "venv", None)
    return policy.observation_space if venv is None else venv.observation_space


def _channels_last(layout: str | None, space: spaces.Space, env: VecEnv | None) -> set[str | None]:
    """Return the keys of images that come with their channels last."""
    if layout not in (None, "HWC", "CHW"):
        raise ValueError(f"image_layout={layout!r} is unknown: choose 'HWC' (channels last) or 'CHW' (first).")
    known = by_key(space)
    images = {key for key, part in known.items() if len(part.shape or ()) == 3}
    if layout == "HWC":
        if not images:
            raise ValueError("image_layout='HWC' is for images, of which the policy's observations have none.")
        return images
    if layout == "CHW":
        return set()
    if not any(isinstance(layer, VecTransposeImage) and not layer.skip for layer in layers(env)):
        return set()
    return {key for key in images if is_image_space(known[key], check_channels=False)}


def _takes_masks(argument: bool | None, model: Any, env: VecEnv | None) -> bool:
    policy = getattr(model, "policy", model)
    if argument:
        sizes_of(policy.action_space)  # an error where there can be none
    if argument is not None:
        return argument
    if not isinstance(model, ActionMasking) or env is None:
        return isinstance(policy, MaskableActorCriticPolicy)
    is_discrete = not isinstance(policy.action_space, spaces.Box)
    return is_discrete and model.use_masking is not False and is_masking_supported(env)
