"""Statistics of results: equal to hand-computed numbers and to SciPy's, and with the properties that they promise."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sb3_trl.report.statistics import (
    ALL_TASKS,
    band,
    evaluations_after,
    final_evaluations,
    interquartile_mean,
    largest_drops,
    mean_interval,
    means_over_tasks,
    normalize,
    prediction_interval,
    score_matrix,
)


def runs(values: dict[tuple[str, str, int], list[float]], every: int = 10) -> pd.DataFrame:
    """Results of some runs: (variant, task, seed) → returns, evaluated every ``every`` steps."""
    rows = [
        {"variant": variant, "task": task, "seed": seed, "step": every * (i + 1), "eval_return": value}
        for (variant, task, seed), returns in values.items()
        for i, value in enumerate(returns)
    ]
    return pd.DataFrame(rows)


def scores(matrix: np.ndarray, variant: str = "A") -> pd.DataFrame:
    """The scores of one variant, from an array (seeds, tasks)."""
    rows = [
        {"variant": variant, "task": f"task{task}", "seed": seed, "value": value}
        for (seed, task), value in np.ndenumerate(matrix)
    ]
    return pd.DataFrame(rows)


# --- over seeds ---


def test_interval_by_hand():
    """1, 2, 3: mean 2, s = 1, and Student's 97.5 % quantile with two degrees of freedom is 4.30265."""
    estimate = mean_interval(np.array([1.0, 2.0, 3.0]))
    assert estimate.value == 2
    assert estimate.half_width == pytest.approx(4.30265 / np.sqrt(3), rel=1e-5)


@pytest.mark.parametrize("n", [2, 5, 40])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_interval_is_scipys(n, confidence):
    values = np.random.default_rng(n).normal(100, 7, n)
    low, high = stats.t.interval(confidence, n - 1, loc=values.mean(), scale=stats.sem(values))
    estimate = mean_interval(values, confidence)
    assert (estimate.low, estimate.high) == pytest.approx((low, high))


def test_interval_holds_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(4000, 4))
    held = [estimate.low <= 0 <= estimate.high for estimate in map(mean_interval, draws)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_prediction_interval_holds_the_next_value_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(4000, 6))
    estimates = map(prediction_interval, draws[:, :-1])
    held = [estimate.low <= draw[-1] <= estimate.high for estimate, draw in zip(estimates, draws, strict=True)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_prediction_interval_of_one_seed():
    estimate = prediction_interval(np.array([3.0]))
    assert estimate.value == 3
    assert np.isnan([estimate.low, estimate.high]).all()


def test_interval_shrinks_with_seeds():
    draws = np.random.default_rng(0).normal(size=(200, 40))
    widths = [np.mean([mean_interval(draw[:n]).half_width for draw in draws]) for n in (3, 10, 40)]
    assert widths[0] > 2 * widths[1] > 3 * widths[2]


def test_one_seed_has_no_interval():
    estimate = mean_interval(np.array([3.0]))
    assert estimate.value == 3
    assert np.isnan([estimate.low, estimate.high]).all()
    with pytest.raises(ValueError, match="no values"):
        mean_interval(np.array([]))


def test_band_is_the_interval_at_every_step():
    table = runs({("A", "T", seed): list(np.random.default_rng(seed).normal(size=4)) for seed in range(5)})
    result = band(table, "eval_return")
    assert list(result.index) == [10, 20, 30, 40]
    for step, row in result.iterrows():
        expected = mean_interval(table[table.step == step].eval_return)
        assert tuple(row) == pytest.approx(tuple(expected))


def test_band_leaves_missing_values_out():
    table = runs({("A", "T", 0): [np.nan, 1.0], ("A", "T", 1): [np.nan, 3.0]})
    assert band(table, "eval_return")["mean"].to_dict() == {20: 2.0}


# --- parts of runs ---


def test_final_evaluations():
    table = runs({("A", "T", 0): [0, 1, 2, 6], ("B", "T", 0): [9, 9, 1, 3]})
    result = final_evaluations(table.sample(frac=1, random_state=0), 2)
    assert dict(zip(result.variant, result.value, strict=True)) == {"A": 4, "B": 2}


def test_runs_keep_their_order():
    table = runs({("B", "T", 1): [0, 1], ("A", "S", 0): [0, 1], ("A", "T", 0): [0, 1]})
    for result in (final_evaluations(table, 1), evaluations_after(table, 0.5, 1)):
        assert list(zip(result.variant, result.task, strict=True)) == [("B", "T"), ("A", "S"), ("A", "T")]


def test_evaluations_after_a_share():
    table = runs({("A", "T", 0): list(range(10))})  # evaluated after 10, 20, …, 100 steps
    assert evaluations_after(table, 0.2, 3).value.item() == np.mean([1, 2, 3])
    assert evaluations_after(table, 1.0, 1).value.item() == 9


def test_too_few_evaluations():
    table = runs({("A", "T", 0): [1, 2]})
    with pytest.raises(ValueError, match="2 evaluations where 3 are needed"):
        final_evaluations(table, 3)
    with pytest.raises(ValueError, match="1 evaluations where 2 are needed"):
        evaluations_after(table, 1.0, 2)


@pytest.mark.parametrize(
    ("returns", "drop"),
    [
        ([0, 1, 5, 10], 0),
        ([0, 10, 4, 10], 0.6),
        ([0, 4, 2, 10], 0.2),  # what falls early is little of what is gained in the end
        ([-10, 0, -10], 1),
        ([2, 4, 0], 2),  # below where it began
    ],
)
def test_largest_drop_of_a_run(returns, drop):
    values = np.array(returns, dtype=float)
    table = pd.concat([runs({("A", "T", 0): list(values)}), runs({("B", "T", 1): list(3 * values - 7)})])
    shuffled = table.sample(frac=1, random_state=0)
    result = largest_drops(shuffled)
    assert list(zip(result.variant, result.seed, strict=True)) == [("A", 0), ("B", 1)]
    assert np.allclose(result.value, drop), "units do not matter"


def test_a_run_that_never_rises_has_no_drop():
    table = runs({("A", "T", 0): [3, 2, 1], ("A", "T", 1): [1, 2, 3]})
    assert largest_drops(table).seed.to_list() == [1]


# --- over tasks ---


def test_normalisation_maps_the_reference_to_one_and_random_play_to_zero():
    matrix = np.array([[-5.0, 100.0], [15.0, 300.0], [5.0, 200.0]])
    reference, random = {"task0": 15.0, "task1": 300.0}, {"task0": -5.0, "task1": 100.0}
    result, left_out = normalize(scores(matrix), reference, random)
    assert left_out == []
    assert np.allclose(score_matrix(result), [[0, 0], [1, 1], [0.5, 0.5]])


def test_tasks_on_which_the_reference_has_learned_nothing_are_left_out():
    result, left_out = normalize(scores(np.ones((2, 2))), {"task0": 2.0, "task1": 3.0}, {"task0": 0.0, "task1": 3.0})
    assert left_out == ["task1"]
    assert set(result.task) == {"task0"}


def test_every_task_needs_every_seed():
    with pytest.raises(ValueError, match="task1"):
        score_matrix(scores(np.ones((3, 2))).drop(index=5))


def test_means_over_tasks_are_of_seeds_that_have_all():
    rows = [("A", "x", 0, 1.0), ("A", "y", 0, 3.0), ("A", "x", 1, 5.0), ("B", "y", 1, 7.0), ("B", "x", 1, 8.0)]
    means = means_over_tasks(pd.DataFrame(rows, columns=["variant", "task", "seed", "value"]))
    assert means.to_dict("records") == [
        {"variant": "A", "seed": 0, "value": 2.0, "task": ALL_TASKS},
        {"variant": "B", "seed": 1, "value": 7.5, "task": ALL_TASKS},
    ]


def test_iqm_by_hand():
    """The middle half of 0, …, 7 is 2, 3, 4, 5."""
    matrix = np.arange(8.0).reshape(4, 2)
    estimate = interquartile_mean(matrix)
    assert estimate.value == pytest.approx(3.5)
    assert estimate.value == pytest.approx(stats.trim_mean(matrix.ravel(), 0.25))
    assert estimate.low < 3.5 < estimate.high


def test_iqm_of_identical_scores():
    assert interquartile_mean(np.full((5, 3), 0.7)) == pytest.approx((0.7, 0.7, 0.7))


def test_iqm_is_not_moved_by_one_outlier():
    matrix = np.random.default_rng(0).normal(1, 0.1, (10, 3))
    before = interquartile_mean(matrix, repetitions=1).value
    matrix[0, 0] = 1000
    assert interquartile_mean(matrix, repetitions=1).value == pytest.approx(before, abs=0.05)


def test_interval_of_the_iqm_shrinks_with_seeds():
    draws = np.random.default_rng(0).normal(size=(40, 4))
    widths = [interquartile_mean(draws[:n], repetitions=500).half_width for n in (4, 12, 40)]
    assert widths[0] > widths[1] > widths[2]


def test_bootstrap_is_repeatable_and_leaves_numpys_generator_alone():
    matrix = np.random.default_rng(0).normal(size=(5, 3))
    np.random.seed(3)  # noqa: NPY002
    first = interquartile_mean(matrix, repetitions=100)
    after = np.random.random()  # noqa: NPY002
    assert first == interquartile_mean(matrix, repetitions=100) != interquartile_mean(matrix, repetitions=100, seed=1)
    np.random.seed(3)  # noqa: NPY002
    assert np.random.random() == after  # noqa: NPY002


def test_iqm_of_one_seed_has_no_interval():
    estimate = interquartile_mean(np.array([[1.0, 2.0]]), repetitions=10)
    assert estimate.value == 1.5
    assert np.isnan(estimate.low)
