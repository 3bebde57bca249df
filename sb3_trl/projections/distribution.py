"""What the policies that can be projected have in common, whatever their kind: ``Gaussian`` and ``Categorical``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Bound", "Distribution", "Rule"]

#: A positive number, or one for each state, ``(*batch,)``.
Bound: TypeAlias = float | Tensor


class Rule(Protocol):
    """What distributions ask of a ``Projection``: a method for every kind, and its distances."""

    @property
    def projects_categoricals(self) -> bool:
        """Whether it has a method for categoricals."""

    def refuse_categoricals(self) -> NoReturn:
        """Raise an error that names what has."""

    def project_gaussian(self, new: Any, old: Any, mean_bound: Any, cov_bound: Any) -> Any:
        """Return the projected Gaussian."""

    def mean_distance(self, p: Any, q: Any) -> Tensor:
        """Return the part of d(p, q) that depends on the means."""

    def cov_distance(self, p: Any, q: Any) -> Tensor:
        """Return the part of d(p, q) that depends on the covariances."""

    def gaussian_penalty(self, new: Any, target: Any) -> Tensor:
        """Return the penalty of a Gaussian."""

    def project_categorical(self, new: Any, old: Any, bound: Any) -> Tensor:
        """Return the projected log-probabilities."""

    def categorical_distance(self, p: Any, q: Any) -> Tensor:
        """Return d(p, q) of categoricals, which is the penalty, too."""


class Distribution(ABC):
    """A batch of distributions over actions.

    Projections, the trust region layer and entropy control treat all kinds alike: what differs from kind to kind is
    asked of the distribution, which calls the methods of the projection that are meant for its kind.
    """

    __slots__ = ()

    #: What bounds a trust region around this kind, one name for each part of a distance.
    bound_names: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def dim(self) -> int:
        """Number of dimensions of one action."""

    @property
    @abstractmethod
    def batch_shape(self) -> torch.Size:
        """The dimensions of the batch, one distribution for each state."""

    @property
    @abstractmethod
    def tensor(self) -> Tensor:
        """One of its parameters, whose device is that of all."""

    @abstractmethod
    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-density or log-probability of actions ``(*batch, dim)``; shape ``(*batch,)``."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """Entropy in nats; shape ``(*batch,)``."""

    @abstractmethod
    def kl(self, other: Self) -> Tensor:
        """KL(self ‖ other) in nats, differentiable in both; shape ``(*batch,)``."""

    @abstractmethod
    def sample(self) -> Tensor:
        """Draw one action per state; shape ``(*batch, dim)``."""

    @abstractmethod
    def mode(self) -> Tensor:
        """The likeliest action of each state; shape ``(*batch, dim)``."""

    @abstractmethod
    def double(self) -> Self:
        """Return the same in float64."""

    @abstractmethod
    def detach(self) -> Self:
        """Return the same as a constant, without derivatives of either mode."""

    @abstractmethod
    def __getitem__(self, index: Tensor | slice) -> Self:
        """Return the distributions at ``index`` of the first batch dimension."""

    @abstractmethod
    def with_entropy(self, bound: Bound, equality: bool = False) -> Self:
        """Return the distribution with entropy β where it has less (see ``control_entropy``).

        :param bound: β in nats, a constant.
        :param equality: Also where it has more.
        """

    # --- what a projection asks ---

    @abstractmethod
    def check(self, old: Distribution) -> None:
        """Raise a ``ValueError`` that says why unless there is a trust region around ``old`` for this."""

    @abstractmethod
    def check_projection(self, projection: Rule) -> None:
        """Raise a ``NotImplementedError`` that says so if ``projection`` is not for this kind."""

    @abstractmethod
    def projected_by(self, projection: Rule, old: Self, *bounds: Bound) -> Self:
        """Return the projection into the region around ``old``.

        :param bounds: One for each of ``bound_names``.
        """

    @abstractmethod
    def distance_by(self, projection: Rule, other: Self) -> tuple[Tensor, ...]:
        """Return the projection's d(self, other), one part for each of ``bound_names``."""

    @abstractmethod
    def penalty_by(self, projection: Rule, target: Self) -> Tensor:
        """Return the projection's penalty for being away from ``target``, a constant; shape ``(*batch,)``."""
