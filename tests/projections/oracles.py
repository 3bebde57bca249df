"""Independent solvers of the projections' optimisation problems: slow, and written from the definitions."""

import math
import warnings

import cvxpy as cp
import numpy as np
from scipy.optimize import brentq, minimize

_TOLERANCES = {f"tol_{name}": 1e-12 for name in ("gap_abs", "gap_rel", "feas", "ktratio")}


def _solve(objective: cp.Expression, constraints: list) -> None:
    problem = cp.Problem(cp.Minimize(objective), constraints)
    with warnings.catch_warnings():
        # These tolerances are often out of reach; about 1e-6 is what comes back.
        warnings.filterwarnings("ignore", "Solution may be inaccurate")
        problem.solve(solver=cp.CLARABEL, **_TOLERANCES)
    assert problem.status in ("optimal", "optimal_inaccurate"), problem.status


def kl_std(std: np.ndarray, std_old: np.ndarray, bound: float) -> np.ndarray:
    """argmin KL(σ̃ ‖ σ) s.t. KL(σ̃ ‖ σ_o) ≤ ε: eq. 11 with η from a bisection of log η."""

    def variance(log_eta: float) -> np.ndarray:
        eta = math.exp(log_eta)
        return (1 + eta) / (1 / std**2 + eta / std_old**2)

    def divergence(log_eta: float) -> float:
        ratio = variance(log_eta) / std_old**2
        return 0.5 * float(np.sum(ratio - 1 - np.log(ratio)))

    if 0.5 * float(np.sum((std / std_old) ** 2 - 1 - np.log((std / std_old) ** 2))) <= bound:
        return std
    root = brentq(lambda x: divergence(x) - bound, -40, 40, xtol=1e-15, rtol=1e-15, maxiter=500)
    return np.sqrt(variance(root))


def kl_covariance(cov: np.ndarray, cov_old: np.ndarray, bound: float) -> np.ndarray:
    """Eq. 10."""
    dim = len(cov)
    new = cp.Variable((dim, dim), symmetric=True)
    divergence = 0.5 * (cp.trace(np.linalg.inv(cov_old) @ new) - dim - cp.log_det(new))
    divergence += 0.5 * np.linalg.slogdet(cov_old)[1]
    _solve(cp.trace(np.linalg.inv(cov) @ new) - cp.log_det(new), [divergence <= bound])
    return new.value


def wasserstein_covariance(cov: np.ndarray, tril_old: np.ndarray, bound: float) -> np.ndarray:
    """Eq. 8 without the commuting assumption, as a semidefinite program: tr (A^½ B A^½)^½ = max tr X of a block."""
    dim = len(cov)
    inverse = np.linalg.inv(tril_old)
    target = inverse @ cov @ inverse.T
    new = cp.Variable((dim, dim), symmetric=True)
    to_target, to_old = cp.Variable((dim, dim)), cp.Variable((dim, dim))
    constraints = [
        cp.bmat([[new, to_target], [to_target.T, target]]) >> 0,
        cp.bmat([[new, to_old], [to_old.T, np.eye(dim)]]) >> 0,
        cp.trace(new) + dim - 2 * cp.trace(to_old) <= bound,
    ]
    _solve(cp.trace(new) - 2 * cp.trace(to_target), constraints)
    return tril_old @ new.value @ tril_old.T


def wasserstein_std(std: np.ndarray, std_old: np.ndarray, bound: float) -> np.ndarray:
    """Eq. 9 for standard deviations, as a cone program."""
    new = cp.Variable(len(std))
    _solve(cp.norm((new - std) / std_old), [cp.norm((new - std_old) / std_old) <= math.sqrt(bound)])
    return new.value


def frobenius_covariance(cov: np.ndarray, cov_old: np.ndarray, bound: float) -> np.ndarray:
    """Eq. 7."""
    new = cp.Variable(cov.shape, symmetric=True)
    _solve(cp.norm(new - cov, "fro"), [cp.norm(new - cov_old, "fro") <= math.sqrt(bound)])
    return new.value


def mahalanobis_mean(mean: np.ndarray, mean_old: np.ndarray, tril_old: np.ndarray, bound: float) -> np.ndarray:
    """Eq. 5."""
    new = cp.Variable(len(mean))
    inverse = np.linalg.inv(tril_old)
    _solve(cp.norm(inverse @ (new - mean)), [cp.norm(inverse @ (new - mean_old)) <= math.sqrt(bound)])
    return new.value


def joint_kl(
    mean: np.ndarray,
    cov: np.ndarray,
    mean_old: np.ndarray,
    cov_old: np.ndarray,
    bound: float,
    entropy: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Eq. 17 with an entropy inequality, as a convex program in mean and covariance."""
    dim = len(mean)
    new, center = cp.Variable((dim, dim), symmetric=True), cp.Variable(dim)

    def divergence(mean: np.ndarray, cov: np.ndarray) -> cp.Expression:
        inverse = np.linalg.inv(cov)
        root = np.linalg.cholesky(inverse).T
        moved = cp.sum_squares(root @ (center - mean))
        return 0.5 * (cp.trace(inverse @ new) - dim - cp.log_det(new) + np.linalg.slogdet(cov)[1] + moved)

    constraints = [divergence(mean_old, cov_old) <= bound]
    if entropy is not None:
        constraints.append(0.5 * cp.log_det(new) + 0.5 * dim * math.log(2 * math.pi * math.e) >= entropy)
    _solve(divergence(mean, cov), constraints)
    return center.value, new.value


def joint_kl_equality(
    mean: np.ndarray, cov: np.ndarray, mean_old: np.ndarray, cov_old: np.ndarray, bound: float, entropy: float
) -> tuple[np.ndarray, np.ndarray]:
    """Eq. 17 with an entropy equality, by sequential quadratic programming in mean and Cholesky factor.

    Works in the metric of the old policy, with a log-parametrised diagonal.
    """
    dim = len(mean)
    rows, columns = np.tril_indices(dim, -1)
    tril_old = np.linalg.cholesky(cov_old)
    inverse = np.linalg.inv(tril_old)
    target_mean, target_cov = inverse @ (mean - mean_old), inverse @ cov @ inverse.T
    precision = np.linalg.inv(target_cov)
    log_det = np.linalg.slogdet(target_cov)[1]
    gain = entropy - 0.5 * dim * math.log(2 * math.pi * math.e) - np.linalg.slogdet(tril_old)[1]

    def unpack(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tril = np.diag(np.exp(x[dim : 2 * dim]))
        tril[rows, columns] = x[2 * dim :]
        return x[:dim], tril

    def objective(x: np.ndarray) -> float:
        center, tril = unpack(x)
        step = center - target_mean
        trace = np.sum((precision @ tril) * tril)
        return 0.5 * float(trace - dim - 2 * np.sum(x[dim : 2 * dim]) + log_det + step @ precision @ step)

    def divergence(x: np.ndarray) -> float:
        center, tril = unpack(x)
        return 0.5 * float(np.sum(tril**2) - dim - 2 * np.sum(x[dim : 2 * dim]) + center @ center)

    result = minimize(
        objective,
        np.zeros(2 * dim + len(rows)),
        method="SLSQP",
        constraints=[
            {"type": "ineq", "fun": lambda x: bound - divergence(x)},
            {"type": "eq", "fun": lambda x: np.sum(x[dim : 2 * dim]) - gain},
        ],
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    center, tril = unpack(result.x)
    scale = tril_old @ tril
    return mean_old + tril_old @ center, scale @ scale.T


def kl_categorical(
    probs: list[np.ndarray], probs_old: list[np.ndarray], bound: float
) -> tuple[list[np.ndarray], float]:
    """argmin KL(p̃ ‖ p) s.t. KL(p̃ ‖ p_o) ≤ ε for a product of categoricals, as a program over exponential cones.

    Returns the factors, and the smallest divergence.
    """
    new = [cp.Variable(len(factor)) for factor in probs]

    def divergence(others: list[np.ndarray]) -> cp.Expression:
        return sum(cp.sum(cp.rel_entr(p, q)) for p, q in zip(new, others, strict=True))

    simplex = [cp.sum(p) == 1 for p in new]
    _solve(divergence(probs), [divergence(probs_old) <= bound, *simplex])
    return [p.value for p in new], float(divergence(probs).value)


def entropy_categorical(probs: list[np.ndarray], entropy: float) -> tuple[list[np.ndarray], float]:
    """argmin KL(p̃ ‖ p) s.t. H(p̃) ≥ β, likewise."""
    new = [cp.Variable(len(factor)) for factor in probs]
    objective = sum(cp.sum(cp.rel_entr(p, q)) for p, q in zip(new, probs, strict=True))
    _solve(objective, [sum(cp.sum(cp.entr(p)) for p in new) >= entropy, *[cp.sum(p) == 1 for p in new]])
    return [p.value for p in new], float(objective.value)
