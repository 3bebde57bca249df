"""Estimates as text."""

from sb3_trl.report.statistics import Estimate
from sb3_trl.report.tables import estimate_text, interval_text, markdown_table, number_text


def test_texts_of_numbers():
    nan = float("nan")
    assert estimate_text(Estimate(1234.5, 1200.0, 1269.0)) == "1234 ± 34"
    assert estimate_text(Estimate(0.01234, 0.01, 0.01468), bold=True) == "**0.0123** ± 0.0023"
    assert estimate_text(Estimate(-2.5, nan, nan)) == "-2.50"
    assert estimate_text(Estimate(nan, nan, nan)) == number_text(nan) == "–"
    assert interval_text(Estimate(0.51, 0.4, 0.9)) == "0.510 (0.400 to 0.900)"
    assert interval_text(Estimate(0.51, nan, nan)) == "0.510"
    assert number_text(0.0) == "0"
    assert markdown_table(["a", "b"], [["1", "2"]]).splitlines()[1] == "| --- | ---: |"
