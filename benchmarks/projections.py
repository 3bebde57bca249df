"""How long a projection takes, forward and backward, in one table: ``python benchmarks/projections.py``.

Medians of many repetitions, on one thread, all rows in one run; on a busy machine, ``--clock cpu`` leaves out the
time in which other programs ran. "none" is a batch in which no state violates its
bound, "all" one in which every state does. Two yardsticks: the time that the eigenvalues of as many covariances
take, without which no projection of full covariances is found; and, for the KL projection of diagonal ones and of
categoricals, SciPy's L-BFGS-B on the same dual, state by state, as implementations with a numerical optimiser do it
(forward only).

    OMP_NUM_THREADS=1 python benchmarks/projections.py --projections kl --kinds full --sizes 512x17
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from scipy.optimize import minimize

from sb3_trl.projections import (
    Categorical,
    Distribution,
    FrobeniusProjection,
    Gaussian,
    JointKLProjection,
    KLProjection,
    Projection,
    WassersteinProjection,
)

PROJECTIONS: dict[str, type[Projection]] = {
    "kl": KLProjection,
    "w2": WassersteinProjection,
    "frobenius": FrobeniusProjection,
    "joint_kl": JointKLProjection,
}
Clock: TypeAlias = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.thread_time}
KINDS = ("shared", "diagonal", "full", "categorical")
SIZES = ("1x6", "32x6", "64x6", "512x6", "2048x6", "1x17", "32x17", "64x17", "512x17", "2048x17")
CATEGORICAL_SIZES = ("1x6", "64x6", "512x6", "64x18", "512x18", "4096x18")
MEAN_BOUND, COV_BOUND, KL_BOUND = 0.03, 1e-3, 0.01


@dataclass(frozen=True)
class Case:
    """One row: a projection of ``batch`` states with ``dim`` actions, or dimensions of the action.

    :param kind: ``"shared"`` (one diagonal standard deviation for all states), ``"diagonal"``, ``"full"`` or
        ``"categorical"``.
    :param projected: Whether all states violate their bounds, or none.
    """

    projection: str
    kind: str
    batch: int
    dim: int
    projected: bool
    dtype: torch.dtype

    def policies(self) -> tuple[Distribution, Distribution, list[torch.Tensor]]:
        """Return the prediction, the old policy, and the leaves of the prediction."""
        torch.manual_seed(0)
        if self.kind == "categorical":
            logits = torch.randn(self.batch, self.dim, dtype=self.dtype)
            step = (2.0 if self.projected else 1e-3) * torch.randn_like(logits)
            log_probs = Categorical.from_logits(logits + step).log_probs.requires_grad_()
            return Categorical(log_probs), Categorical.from_logits(logits), [log_probs]
        new, old = self.gaussians()
        return new, old, [new.mean, new.scale]

    def gaussians(self) -> tuple[Gaussian, Gaussian]:
        """Return the prediction, whose mean and scale are leaves, and the old policy."""
        size = 1.0 if self.projected else 1e-4
        mean = torch.randn(self.batch, self.dim, dtype=torch.float64)
        new_mean = mean + size * torch.randn_like(mean)
        if self.kind == "full":
            root = torch.randn(self.batch, self.dim, self.dim, dtype=torch.float64) / math.sqrt(self.dim)
            scale = torch.linalg.cholesky(torch.eye(self.dim) + root @ root.mT)
            noise = size * torch.randn_like(scale) / math.sqrt(self.dim)
            new_scale = scale @ (noise.tril(-1) + torch.diag_embed(noise.diagonal(dim1=-2, dim2=-1).exp()))
            return self._leaves(Gaussian(new_mean, scale_tril=new_scale)), self._cast(Gaussian(mean, scale_tril=scale))
        own = (self.batch, self.dim) if self.kind == "diagonal" else (self.dim,)
        std = 0.5 + torch.rand(own, dtype=torch.float64)
        new_std = std * torch.exp(0.5 * size * torch.randn_like(std))
        return self._leaves(Gaussian(new_mean, std=new_std)), self._cast(Gaussian(mean, std=std))

    def _cast(self, gaussian: Gaussian) -> Gaussian:
        return gaussian.with_scale(gaussian.scale.to(self.dtype), gaussian.mean.to(self.dtype))

    def _leaves(self, gaussian: Gaussian) -> Gaussian:
        gaussian = self._cast(gaussian)
        return gaussian.with_scale(gaussian.scale.requires_grad_(), gaussian.mean.requires_grad_())


@dataclass(frozen=True)
class Timing:
    """Medians in milliseconds."""

    forward: float
    both: float
    eigenvalues: float
    lbfgs: float


def measure(case: Case, budget: float, clock: Clock) -> Timing:
    """Time one case for about ``budget`` seconds."""
    new, old, leaves = case.policies()
    projection = PROJECTIONS[case.projection](MEAN_BOUND, COV_BOUND)
    inside = projection.is_inside(new, old)
    assert not inside.any() if case.projected else inside.all()
    cotangents = [torch.randn_like(x) for x in leaves]

    def both() -> None:
        projected = projection(new, old)
        tensors = [projected.log_probs] if case.kind == "categorical" else [projected.mean, projected.scale]
        torch.autograd.backward(tensors, cotangents)
        for x in leaves:
            x.grad = None

    timing = Timing(
        median(lambda: projection(new, old), 0.4 * budget, clock), median(both, 0.4 * budget, clock), math.nan, math.nan
    )
    if case.kind == "full":
        covariance = old.covariance.double()
        return replace(timing, eigenvalues=median(lambda: torch.linalg.eigvalsh(covariance), 0.2 * budget, clock))
    if case.projected and case.projection == "kl" and case.kind in LBFGS:
        return replace(timing, lbfgs=LBFGS[case.kind](new, old, clock))
    return timing


def lbfgs_diagonal(new: Gaussian, old: Gaussian, clock: Clock) -> float:
    """Return the milliseconds that L-BFGS-B takes to project all states, after it found what our projection finds."""
    precision, precision_old = (g.scale.detach().double().pow(-2).numpy() for g in (new, old))
    start = clock()
    found = [lbfgs_precision(*state) for state in zip(precision, precision_old, strict=True)]
    duration = 1e3 * (clock() - start)
    ours = KLProjection(MEAN_BOUND, COV_BOUND).project_std(new.double(), old.double(), COV_BOUND)
    assert np.allclose(found, ours.detach().pow(-2).numpy(), rtol=1e-3)
    return duration


def lbfgs_categorical(new: Categorical, old: Categorical, clock: Clock) -> float:
    """The same for categoricals."""
    log_p, log_p_old = (c.log_probs.detach().double().squeeze(-2).numpy() for c in (new, old))
    start = clock()
    found = [lbfgs_log_probs(*state) for state in zip(log_p, log_p_old, strict=True)]
    duration = 1e3 * (clock() - start)
    ours = KLProjection(kl_bound=KL_BOUND)(new.double(), old.double()).log_probs.squeeze(-2)
    assert np.allclose(found, ours.detach().numpy(), rtol=1e-3, atol=1e-3)
    return duration


LBFGS = {"diagonal": lbfgs_diagonal, "categorical": lbfgs_categorical}


def lbfgs_precision(precision: np.ndarray, precision_old: np.ndarray) -> np.ndarray:
    """Return the projected precision of one state, (λ + ηλ_o)/(1 + η), where η minimises the negative dual.

    It is minimised in log η, which takes a quarter of the time.
    """

    def interpolated(eta: np.ndarray) -> np.ndarray:
        return (precision + eta * precision_old) / (1 + eta)

    def negative_dual(log_eta: np.ndarray) -> tuple[float, np.ndarray]:
        eta = np.exp(log_eta)
        result = interpolated(eta)
        logs = (1 + eta) * np.log(result) - np.log(precision) - eta * np.log(precision_old)
        ratio = precision_old / result
        divergence = 0.5 * (ratio - 1 - np.log(ratio)).sum()
        return float((eta * COV_BOUND - 0.5 * logs.sum())[0]), eta * (COV_BOUND - divergence)

    return interpolated(np.exp(minimize(negative_dual, np.zeros(1), jac=True, method="L-BFGS-B").x))


def lbfgs_log_probs(log_p: np.ndarray, log_p_old: np.ndarray) -> np.ndarray:
    """Return log p̃ of one state, proportional to (log p + η log p_o)/(1 + η), where η minimises the negative dual."""

    def interpolated(eta: np.ndarray) -> tuple[np.ndarray, float]:
        mixed = (log_p + eta * log_p_old) / (1 + eta)
        largest = mixed.max()
        log_sum = largest + np.log(np.exp(mixed - largest).sum())
        return mixed - log_sum, log_sum

    def negative_dual(log_eta: np.ndarray) -> tuple[float, np.ndarray]:
        eta = np.exp(log_eta)
        result, log_sum = interpolated(eta)
        divergence = (np.exp(result) * (result - log_p_old)).sum()
        return float(((1 + eta) * log_sum + eta * KL_BOUND)[0]), eta * (KL_BOUND - divergence)

    return interpolated(np.exp(minimize(negative_dual, np.zeros(1), jac=True, method="L-BFGS-B").x))[0]


def median(function: Callable[[], object], budget: float, clock: Clock) -> float:
    """Return the median duration of a call in milliseconds; at least 7 calls, after 3 to warm up."""
    for _ in range(3):
        function()
    durations: list[float] = []
    end = time.perf_counter() + budget
    while len(durations) < 7 or time.perf_counter() < end:
        start = clock()
        function()
        durations.append(clock() - start)
    return 1e3 * statistics.median(durations)


def warm_up_allocator() -> None:
    """Free one large array: glibc then keeps freed memory, as it does in any process that has run for a while.

    In a fresh process every temporary of a megabyte goes back to the system and returns page by page, which
    takes longer than the projection.
    """
    torch.empty(7 * 2**20)


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """Return the rows of the table."""
    dtype = getattr(torch, arguments.dtype)
    for projection in arguments.projections:
        for kind in arguments.kinds:
            if kind == "categorical" and not PROJECTIONS[projection]().projects_categoricals:
                continue
            for size in arguments.sizes or (CATEGORICAL_SIZES if kind == "categorical" else SIZES):
                batch, dim = map(int, size.split("x"))
                for projected in (False, True):
                    yield Case(projection, kind, batch, dim, projected, dtype)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--projections", nargs="+", default=list(PROJECTIONS), choices=PROJECTIONS)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--sizes", nargs="+", metavar="BATCHxDIM")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--budget", type=float, default=0.5, help="seconds for each row")
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="time that passed, or that the thread ran")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warm_up_allocator()
    clock = f"{arguments.clock} time, medians in ms"
    print(f"PyTorch {torch.__version__}, {platform.machine()}, one thread, {arguments.dtype}, {clock}\n")
    print("| projection | policy | states × actions | projected | forward | both | eigenvalues | L-BFGS |")
    print("|---|---|---|---|---|---|---|---|")
    for case in cases(arguments):
        timing = measure(case, arguments.budget, CLOCKS[arguments.clock])
        yardsticks = ["" if math.isnan(x) else f"{x:.3f}" for x in (timing.eigenvalues, timing.lbfgs)]
        print(
            f"| {case.projection} | {case.kind} | {case.batch} × {case.dim} | {'all' if case.projected else 'none'} "
            f"| {timing.forward:.3f} | {timing.both:.3f} | {' | '.join(yardsticks)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
