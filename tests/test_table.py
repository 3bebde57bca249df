"""Data of many states, taken apart into minibatches and chunks."""

import pytest
import torch as th

import sb3_trl.algorithms.trust_region  # noqa: F401  (which takes Gaussians apart)
from sb3_trl.projections import Gaussian
from sb3_trl.rollouts.rollout import Rollout
from sb3_trl.table import chunks, table


def numbered(n: int) -> tuple:
    """Nested tensors with their row number in every entry."""
    rows = th.arange(n)
    rollout = Rollout({"a": rows, "b": rows.unsqueeze(-1)}, rows, rows, rows, rows, rows)
    return rollout, Gaussian(rows.float().unsqueeze(-1), std=th.ones(1)), None


def epoch(data: tuple, size: int) -> list[tuple]:
    """The minibatches of one epoch."""
    whole = table(data)
    return [whole.part(rows) for rows in whole.shuffled().split(size)]


@pytest.mark.parametrize(("n", "size"), [(10, 5), (10, 3), (10, 10), (10, 16), (1, 1)])
def test_an_epoch_holds_every_row_once(n, size):
    seen, sizes = [], []
    for rollout, gaussian, nothing in epoch(numbered(n), size):
        assert isinstance(rollout, Rollout)
        assert nothing is None
        for column in (rollout.observations["a"], rollout.observations["b"][:, 0], rollout.returns):
            assert th.equal(column, rollout.actions)
        assert th.equal(gaussian.mean[:, 0].long(), rollout.actions)
        seen += rollout.actions.tolist()
        sizes.append(len(rollout.actions))
    assert sorted(seen) == list(range(n))
    assert sizes[:-1] == [min(size, n)] * (len(sizes) - 1)


def test_epochs_are_shuffled_anew():
    first, second = ([b[0].actions.tolist() for b in epoch(numbered(50), 10)] for _ in range(2))
    assert first != second
    assert [x for batch in first for x in batch] != list(range(50))


def test_chunks_keep_the_order():
    parts = [part[0].actions.tolist() for part in chunks(numbered(10), 4)]
    assert parts == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
