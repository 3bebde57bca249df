"""What is wrong with an algorithm's arguments, in sentences."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sb3_trl.policies.actor_critic import GAUSSIAN_ARGUMENTS
from sb3_trl.policies.categorical import DISCRETE, ProjectedCategoricalDistribution
from sb3_trl.projections import Categorical, Gaussian, Projection

__all__ = [
    "check_absent",
    "check_at_least",
    "check_bounds",
    "check_categorical",
    "check_choices",
    "check_fixpo",
    "check_policy_kwargs",
    "check_positive",
    "check_trpl",
]


def check_choices(algorithm: Any, choices: Mapping[str, Collection[Any]]) -> None:
    """Check arguments that are one of a few values.

    :param algorithm: Has them as attributes.
    :param choices: What is allowed, by name.
    :raises ValueError: that says what is.
    """
    for name, allowed in choices.items():
        value = getattr(algorithm, name)
        if value not in allowed:
            *others, last = map(repr, allowed)
            raise ValueError(f"{name}={value!r} is unknown: choose {', '.join(others)} or {last}.")


def check_at_least(algorithm: Any, least: Mapping[str, float]) -> None:
    """Check numbers that have a smallest value.

    :param algorithm: Has them as attributes.
    :param least: The smallest values, by name.
    :raises ValueError: that says what it is; also for NaN.
    """
    for name, minimum in least.items():
        value = getattr(algorithm, name)
        if not value >= minimum:
            rule = "must not be negative" if minimum == 0 else f"must be at least {minimum}"
            raise ValueError(f"{name}={value} {rule}.")


def check_absent(algorithm: Any, names: Iterable[str], needed: str) -> None:
    """Check that arguments that need another one are not given without it.

    :param algorithm: Has them as attributes.
    :param names: Which.
    :param needed: What they need, for the error.
    :raises ValueError: for one that is given.
    """
    for name in names:
        if getattr(algorithm, name):
            raise ValueError(f"{name}={getattr(algorithm, name)} needs {needed}.")


def check_positive(algorithm: Any, *names: str) -> None:
    """Check bounds of trust regions.

    :param algorithm: Has them as attributes.
    :param names: Which.
    :raises ValueError: for one that is not positive; also for NaN.
    """
    for name in names:
        value = getattr(algorithm, name)
        if not value > 0:
            raise ValueError(f"{name}={value} must be positive; a larger bound is a larger trust region.")


def check_bounds(algorithm: Any, names: Collection[str], own: Collection[str]) -> None:
    """Check that the bounds given are those of the policy's kind.

    :param algorithm: Has them as attributes, ``None`` where nothing was given.
    :param names: All bounds there are.
    :param own: Those of policies of this kind.
    :raises ValueError: for another one, with the right ones.
    """
    for name in names:
        value = getattr(algorithm, name)
        if value is not None and name not in own:
            raise ValueError(
                f"{name}={value} bounds policies of another kind: in {algorithm.action_space} use {' and '.join(own)}."
            )


def check_categorical(algorithm: Any, projection: Projection | None) -> None:
    """Check what TRPL was given for a discrete action space.

    :param algorithm: Has the arguments as attributes.
    :param projection: Its projection.
    :raises ValueError: for what is of Gaussians, and for a target of the entropy that no categorical policy reaches.
    """
    space = algorithm.action_space
    for name in GAUSSIAN_ARGUMENTS:
        if name in algorithm.policy_kwargs:
            given = f"{name}={algorithm.policy_kwargs[name]!r}"
            raise ValueError(f"{given} is for Gaussians, but actions of {space} are categorical: leave it out.")
    if projection is not None and not projection.projects_categoricals:
        raise ValueError(
            f"{type(projection).__name__} is for Gaussians, but actions of {space} are categorical: use 'kl'."
        )
    if algorithm.entropy_schedule is None:
        return
    sizes = ProjectedCategoricalDistribution(space).sizes
    target, largest = algorithm.target_entropy, sum(map(math.log, sizes)) / len(sizes)
    if target > largest:
        raise ValueError(f"target_entropy={target}: no policy of {space} has more than {largest:.3f} nats per factor.")
    if algorithm.entropy_equality and not target > 0:
        raise ValueError(
            f"target_entropy={target} with entropy_equality=True must be positive: entropies of discrete actions are."
        )


def check_trpl(algorithm: Any, projection: Projection | None) -> None:
    """Check what TRPL was given.

    :param algorithm: Has the arguments as attributes.
    :param projection: Its projection.
    :raises ValueError: for the first that it cannot be.
    """
    bounds = (*Gaussian.bound_names, *Categorical.bound_names)
    is_discrete = isinstance(algorithm.action_space, DISCRETE)
    check_bounds(algorithm, bounds, (Categorical if is_discrete else Gaussian).bound_names)
    if is_discrete:
        check_categorical(algorithm, projection)
    check_at_least(algorithm, {"trust_region_coef": 0, "n_critic_epochs": 0, "n_regression_epochs": 0})
    if algorithm.projection is None:
        check_absent(algorithm, ("hard", *bounds, "n_regression_epochs"), "a trust region: choose a projection")
    if algorithm.entropy_schedule is None:
        needed = "entropy control: choose an entropy_schedule"
        check_absent(algorithm, ("entropy_equality", "entropy_first"), needed)
    if algorithm.hard and algorithm.entropy_schedule is not None and not algorithm.entropy_first:
        raise ValueError("hard=True leaves the trust region the last word: set entropy_first=True with it.")
    if algorithm.hard:
        check_at_least(algorithm, {"max_hard_steps": 1})


def check_fixpo(algorithm: Any) -> None:
    """Check what FixPO was given.

    :param algorithm: Has the arguments as attributes.
    :raises ValueError: for the first that it cannot be.
    """
    choices = {
        "kl_statistic": ("max", "mean"),
        "kl_direction": ("old_new", "new_old"),
        "fixup": ("epoch", "update", "off"),
    }
    check_choices(algorithm, choices)
    least = {"kl_target_coef": 1, "beta_init": 0, "beta_learning_rate": 0}
    check_at_least(algorithm, least | {"max_fixup_steps": 1, "fixup_batch_size": 1})
    check_positive(algorithm, "kl_bound")
    if algorithm.raw_advantage and algorithm.normalize_advantage:
        raise ValueError("raw_advantage=True needs normalize_advantage=False, which would undo it.")


def check_policy_kwargs(policy_class: type, policy_kwargs: Mapping[str, Any]) -> None:
    """Check that a policy's constructor knows what it is given.

    :param policy_class: The policy's class.
    :param policy_kwargs: What it is given.
    :raises ValueError: for what it does not know, with the nearest name.
    """
    known, takes_others = _arguments_of(policy_class)
    for key in policy_kwargs:
        guess = difflib.get_close_matches(key, known, n=1)
        if key not in known and (guess or not takes_others):
            hint = f"did you mean {guess[0]!r}? " if guess else ""
            raise ValueError(
                f"policy_kwargs has {key!r}, which {policy_class.__name__} does not know: {hint}"
                f"It takes {', '.join(sorted(known))}."
            )


def _arguments_of(policy_class: type) -> tuple[set[str], bool]:
    """Return what a policy's constructor takes from ``policy_kwargs``, and whether it may take something else, too.

    A class of somebody's own may do with its ``**kwargs`` what it wants; those of SB3 and this package hand them on.
    """
    known: set[str] = set()
    takes_others = False
    for cls in policy_class.__mro__:
        if "__init__" in vars(cls):
            parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
            known |= {p.name for p in parameters}
            if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
                break
            takes_others |= cls.__module__.partition(".")[0] not in ("stable_baselines3", "sb3_contrib", "sb3_trl")
    known -= {"self", "observation_space", "action_space", "lr_schedule", "use_sde", "args", "kwargs"}
    return known, takes_others
