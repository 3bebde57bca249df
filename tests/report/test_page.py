"""``sb3-trl report``: what stands on the page of a study's results."""

import re
from functools import partial

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("rliable")

from sb3_trl.report.page import read_results, report, returns_table, seeds_table, success_table
from sb3_trl.report.statistics import final_evaluations, interquartile_mean
from sb3_trl.report.unfinished import missing_runs, missing_text
from sb3_trl.study.rows import VERSIONS
from sb3_trl.study.store import PLAN

TASKS = {"Hopper-v5": 1000.0, "Ant-v5": 500.0}
VARIANTS = {"weak": 0.5, "reference": 1.0, "strong": 2.0}


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    """Intervals come from a hundred draws of the bootstrap, not from thousands."""
    monkeypatch.setattr("sb3_trl.report.estimates.interquartile_mean", partial(interquartile_mean, repetitions=100))


@pytest.fixture
def table() -> pd.DataFrame:
    """Returns that rise to a multiple of the task's, for three seeds that differ by ± 1."""
    rows = [
        {
            "study": "example",
            "variant": variant,
            "task": task,
            "seed": seed,
            "step": 100 * k,
            "eval_return": factor * top * min(k, 5) / 5 + seed - 1,
            "train_return": [0, 10, 5, 20, 20, 20, 15, 20, 20][k - 1] * factor * (1 + seed),
            "entropy": 2.0 - factor,
            "kl_mean": factor / 64,
            "kl_spread": 0.0,
            "seconds": 60.0 * k,
        }
        | dict.fromkeys(VERSIONS, "v1")
        for variant, factor in VARIANTS.items()
        for task, top in TASKS.items()
        for seed in range(3)
        for k in range(1, 10)
    ]
    return pd.DataFrame(rows)


def cells(page: str, row: str) -> list[str]:
    """Return the cells of the first table row that begins so."""
    line = next(line for line in page.splitlines() if line.startswith(f"| {row} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_final_returns_and_the_best_of_each_task(table):
    text = returns_table(final_evaluations(table, 5))
    assert cells(text, "weak") == ["500 ± 2", "250 ± 2"]
    assert cells(text, "strong") == ["**2000** ± 2", "**1000** ± 2"]


def test_returns_of_each_seed_and_of_further_ones():
    """1, 2, 3: s = 1, and 4.30265 · √(1 + 1/3) = 4.968."""
    final = pd.DataFrame({"variant": "A", "task": "Ant-v5", "seed": [0, 1, 2], "value": [1.0, 2.0, 3.0]})
    assert cells(seeds_table(final), "Ant-v5") == ["A", "1.00, 2.00, 3.00", "2.00 (-2.97 to 6.97)"]
    assert cells(seeds_table(final[:1]), "Ant-v5") == ["A", "1.00", "1.00"]


def test_page_and_pictures(table, tmp_path):
    page = report(table, tmp_path / "out", reference="reference")
    text = page.read_text()
    for picture in re.findall(r"\]\((\w+\.png)\)", text):
        assert (page.parent / picture).stat().st_size > 5000
    assert {path.name for path in page.parent.iterdir()} == {
        "report.md",
        "finals.png",
        "returns.png",
        "divergence.png",
    }
    assert text.startswith("# example\n")
    assert "3 seeds, 900 steps" in text
    assert "mean of its last 5 evaluations" in text
    scores = cells_of_scores(text)
    assert scores["reference"].startswith("1.00 (")
    assert scores["weak"].startswith("0.518 (")  # of 482 / 982 and 301 / 551, each three times
    assert "| Hopper-v5 | strong | 1999, 2000, 2001 | 2000 (1995 to 2005) |" in text
    assert "| Hopper-v5 | strong | 0.0312 ± 0.0000 | 0 ± 0 | 0.0312 |" in text
    assert "| Hopper-v5 | weak | 0.250 ± 0.000 | 0.250 | 1.50 ± 0.00 |" in text
    assert cells(text[text.index("| minutes |") :], "weak") == ["9.0 ± 0.0", "9.0 ± 0.0"]


def test_successes(table, tmp_path):
    """Where a task has none it is not there; that a file has no such column is no matter."""
    assert "success" not in report(table, tmp_path).read_text()
    hopper = table.task == "Hopper-v5"
    rises = table.assign(eval_success=np.where(hopper, np.minimum(table.step / 900, 0.8), np.nan))
    text = report(rises, tmp_path).read_text()
    section = text[text.index("## Success") :]
    assert cells(section, "success") == ["Hopper-v5"]
    assert cells(section, "strong") == ["72.0 ± 0.0"]  # of 5/9, 6/9, 7/9, 0.8 and 0.8
    assert (tmp_path / "success.png").stat().st_size > 5000


def test_each_task_of_one_policy(table, tmp_path, run):
    """From the file beside the results, for the variants that the page has."""
    table = table[table.task == "Ant-v5"]
    shares = {("easy", "strong"): 1.0, ("easy", "weak"): 0.5, ("hard", "strong"): 0.0, ("hard", "weak"): 0.25}
    rows = [
        {**row._asdict(), "subtask": task, "eval_success": share, "beta": None}
        for (task, variant), share in shares.items()
        for row in table[table.variant == variant].itertuples(index=False)
    ]
    for name, other in (("results", "by_task"), ("mine", "mine_by_task")):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
        pd.DataFrame(rows).to_csv(tmp_path / f"{other}.csv", index=False)
        code, _, error = run(f"report {tmp_path / name}.csv --out {tmp_path / 'out'} --last 2 --variants weak strong")
        assert code == 0, error
        page = (tmp_path / "out" / "report.md").read_text()
        assert cells(page, "success, in %") == ["weak", "strong"]
        assert cells(page, "easy") == ["50.0 ± 0.0", "**100** ± 0"]
        assert cells(page, "hard") == ["**25.0** ± 0.0", "0 ± 0"]
        for picture in ("tasks.png", "tasks_divergence.png"):
            assert f"({picture})" in page
            assert (tmp_path / "out" / picture).stat().st_size > 10_000
            (tmp_path / "out" / picture).unlink()
        assert "tasks_beta.png" not in page, "nobody has one"
        for file in tmp_path.glob("*.csv"):
            file.unlink()


def test_the_mean_success_of_all_tasks():
    """Of seeds that have all of them: 0.1 and 0.3, 0.5 and 0.9."""
    keys = [("A", "Hopper-v5", 0), ("A", "Ant-v5", 0), ("A", "Hopper-v5", 1), ("A", "Ant-v5", 1), ("B", "Ant-v5", 0)]
    final = pd.DataFrame(keys, columns=["variant", "task", "seed"]).assign(value=[0.1, 0.3, 0.5, 0.9, 1.0])
    text = success_table(final)
    assert cells(text, "success") == ["Hopper-v5", "Ant-v5", "all tasks"]
    assert cells(text, "A") == ["**30.0** ± 254.1", "60.0 ± 381.2", "**45.0** ± 317.7"]
    assert cells(text, "B") == ["–", "**100**", "–"]


def cells_of_scores(text: str) -> dict[str, str]:
    """Return the scores over tasks by variant."""
    section = text[text.index("interquartile mean over tasks") :].split("\n\n")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines()[2:]]
    return {name.strip(): value.strip() for name, value in rows}


def test_variants_in_the_order_given(table, tmp_path):
    text = report(table, tmp_path, variants=["strong", "weak"]).read_text()
    assert text.index("| strong |") < text.index("| weak |")
    assert "reference" not in text
    assert "interquartile" not in text, "there is no reference"


def test_the_best_of_several_on_each_task(table, tmp_path, run):
    """A further variant with the rows of the best: in tables, scores and pictures, and who it is on the page."""
    is_worse = (table.variant == "strong") & (table.task == "Ant-v5")
    table.loc[is_worse, "eval_return"] -= 900
    table.to_csv(tmp_path / "results.csv")
    run(f"report {tmp_path} --reference reference --best-of best weak strong --variants reference best")
    page = (tmp_path / "report.md").read_text()
    assert [float(cell.split(" ±")[0].strip("*")) for cell in cells(page, "best")] == [2000, 250]
    assert "weak, strong" in page
    assert "strong on Hopper-v5, weak on Ant-v5" in page
    assert not re.search(r"^\| (weak|strong) \|", page, re.MULTILINE)
    run(f"report {tmp_path} --best-of best weak strong --variants weak")
    assert "best" not in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("best_of", "message"),
    [
        ({"weak": ["strong"]}, "variant 'weak' already"),
        ({"best": ["strong", "stronger"]}, "no variant 'stronger'"),
        ({"best": []}, "best of no variants"),
    ],
)
def test_a_best_of_that_cannot_be(table, tmp_path, best_of, message):
    with pytest.raises(ValueError, match=message):
        report(table, tmp_path, best_of=best_of)


def test_what_a_best_of_lacks_is_missing(folder, table, run):
    """Missing runs of those to choose among are said, though they are not on the page themselves."""
    _, _, err = run(f"report {folder} --best-of best weak strong --variants best")
    assert "4 of 12 runs are missing here" in err


def test_tasks_in_the_order_given(table, tmp_path):
    order = list(dict.fromkeys(table.task))[::-1]
    text = report(table, tmp_path, tasks=order).read_text()
    assert text.index(f"| {order[0]} | weak |") < text.index(f"| {order[1]} | weak |")
    text = report(table, tmp_path, tasks=order[:1]).read_text()
    assert order[1] not in text


def test_what_was_not_measured_is_not_shown(table, tmp_path):
    text = report(table.assign(kl_mean=np.nan), tmp_path).read_text()
    assert "divergence" not in text
    assert not (tmp_path / "divergence.png").exists()


def test_results_of_folders_and_compressed_files(table, tmp_path):
    (tmp_path / "a").mkdir()
    weak = table.variant == "weak"
    table[weak].to_csv(tmp_path / "a" / "results.csv", index=False)
    table[~weak].to_csv(tmp_path / "b.csv.gz", index=False)
    both = read_results([tmp_path / "a", tmp_path / "b.csv.gz"])
    pd.testing.assert_frame_equal(both, table, check_dtype=False)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, {"reference": "best"}, "no variant 'best'. There are weak, reference, strong"),
        ({}, {"variants": ["weak", "best"]}, "no variant 'best'"),
        ({}, {"tasks": ["Ant-v4"]}, "no task 'Ant-v4'. There are Hopper-v5, Ant-v5"),
        ({"task": "Taxi-v3"}, {"reference": "weak"}, "Random play is not known for Taxi-v3"),
        ({}, {"last": 100}, "has 9 evaluations where 100 are needed"),
    ],
)
def test_bad_arguments(table, tmp_path, change, arguments, message):
    if change:
        table = table[table.task == "Ant-v5"].assign(**change)
    with pytest.raises(ValueError, match=re.escape(message)):
        report(table, tmp_path, **arguments)


def test_a_file_of_something_else(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"is not the results\.csv of a study: it has no column study"):
        read_results([tmp_path / "x.csv"])


def test_the_command(table, tmp_path, run):
    table.to_csv(tmp_path / "results.csv", index=False)
    code, out, _ = run(f"report {tmp_path} --reference weak --last 3")
    assert (code, out.strip()) == (0, str(tmp_path / "report.md"))
    assert cells_of_scores((tmp_path / "report.md").read_text())["weak"].startswith("1.00 (")
    code, _, error = run(f"report {tmp_path} --reference best")
    assert code == 2
    assert error.startswith("sb3-trl report: error: There is no variant 'best'")


# --- a study that has not finished ---


@pytest.fixture
def folder(table, tmp_path):
    """The folder of a study with more runs than have finished."""
    table = table.assign(study="example")
    table[table.seed < 2].to_csv(tmp_path / "results.csv", index=False)
    plan = table[["variant", "task", "seed"]].drop_duplicates()
    plan.to_csv(tmp_path / PLAN, index=False)
    return tmp_path


def test_what_is_missing_is_said_first(folder, run):
    code, out, err = run(f"report {folder} --variants weak strong --last 3")
    sentence = (
        "This study has not finished: 4 of 12 runs are missing here, weak on Hopper-v5 (seed 2), weak on Ant-v5 (seed "
        "2), strong on Hopper-v5 (seed 2), strong on Ant-v5 (seed 2)."
    )
    assert (code, out.strip(), err.strip()) == (0, str(folder / "report.md"), sentence)
    assert (folder / "report.md").read_text().startswith(f"# example\n\n{sentence}\n\n![final returns]")


def test_seeds_of_one_variant_are_said_together(folder, table):
    table = table[(table.variant != "weak") | (table.task != "Ant-v5")]
    text = missing_text(*missing_runs([folder / "results.csv"], table))
    assert text == "This study has not finished: 3 of 18 runs are missing here, weak on Ant-v5 (seeds 0, 1, 2)."
    table = table[(table.variant != "weak") | (table.seed != 1)]
    assert "4 of 18 runs are missing here, weak on Hopper-v5 (seed 1), weak" in missing_text(
        *missing_runs([folder], table)
    )
    one = table[(table.task == "Hopper-v5") & ((table.seed > 0) | (table.variant != "strong"))]
    assert "1 of 6 runs is missing here, strong on Hopper-v5 (seed 0)." in missing_text(
        *missing_runs([folder], pd.concat([one, one.assign(variant="weak")]), ["strong", "reference"], ["Hopper-v5"])
    )


def test_nothing_is_said_where_nothing_is_missing(folder, table, tmp_path):
    assert missing_text(*missing_runs([folder], table)) == ""
    assert missing_text(*missing_runs([tmp_path / "elsewhere" / "results.csv"], table.iloc[:1])) == ""


def test_no_run_has_finished(folder, table, run):
    table.iloc[:0].to_csv(folder / "results.csv", index=False)
    code, _, err = run(f"report {folder}")
    assert code == 2
    assert f"No run of {folder} has finished yet: report when one has." in err


@pytest.mark.parametrize("n_runs", [1, 5])
def test_any_runs_that_have_finished_make_a_page(table, tmp_path, n_runs):
    """Also one run alone, and other seeds on every task."""
    runs = table[["variant", "task", "seed"]].drop_duplicates()
    some = runs.sample(n=n_runs, random_state=n_runs)
    reference = some.variant.iloc[0]
    page = report(table.merge(some), tmp_path, reference=reference).read_text()
    for variant in set(some.variant):
        assert variant in page


def test_variants_with_other_seeds_on_every_task_have_no_score(table, tmp_path):
    one = (table.task == "Hopper-v5") & (table.seed == 0) | (table.task == "Ant-v5") & (table.seed == 1)
    page = report(
        table[(table.variant != "weak") & (table.seed == 0) | (table.variant == "weak") & one],
        tmp_path,
        reference="strong",
    )
    assert set(cells_of_scores(page.read_text())) == {"reference", "strong"}
