"""Joint evaluation: comparisons and rank correlations of given scores."""

from __future__ import annotations

import numpy as np
import pandas
import pytest

from pnp.joint import Table


def made_up(dice, psnr):
    """A table of given scores (cases, solvers) for one operator."""
    rows = []
    for case in range(len(dice)):
        for solver, name in enumerate("abcd"):
            row = dict.fromkeys(("ssim", "nrmse", "iou", "hd95", "surface_dice", "volume_error", "seconds"), 0.5)
            scores = {"psnr": psnr[case][solver], "dice": dice[case][solver]}
            rows.append({"case": case, "operator": "op", "solver": name} | row | scores)
    return Table(pandas.DataFrame(rows))


def test_rank_correlation_of_known_orders():
    rng = np.random.default_rng(0)
    means = np.array([0.5, 0.6, 0.7, 0.8])
    same = made_up(means + 0.01 * rng.random((6, 4)), 40 * means + rng.random((6, 4)))
    assert same.rank_correlation()["rho"] == pytest.approx(1)
    assert same.rank_correlation()["low"] == pytest.approx(1)
    reverse = made_up(means[::-1] + 0.01 * rng.random((6, 4)), 40 * means + rng.random((6, 4)))
    assert reverse.rank_correlation()["rho"] == pytest.approx(-1)
    swapped = made_up(means[[1, 0, 2, 3]] + np.zeros((6, 4)), 40 * means + np.zeros((6, 4)))
    assert swapped.rank_correlation()["by_operator"]["op"]["rho"] == pytest.approx(0.8)
    noisy = made_up(0.5 + 0.1 * rng.random((6, 4)), 30 + rng.random((6, 4))).rank_correlation()
    assert noisy["high"] - noisy["low"] > 0.5
    with pytest.raises(ValueError, match="at least three solvers"):
        Table(same.frame[same.frame.solver < "c"]).rank_correlation()
    other = same.frame.assign(operator="other", psnr=np.nan)  # where nothing is told, nothing counts
    assert Table(pandas.concat([same.frame, other])).rank_correlation()["rho"] == same.rank_correlation()["rho"]
    two = same.frame[same.frame.solver < "c"].assign(operator="other")
    assert list(Table(pandas.concat([same.frame, two])).rank_correlation()["by_operator"]) == ["op"]
    apart = same.frame[same.frame.case == same.frame.solver.map({"a": 0, "b": 1, "c": 2, "d": 3})]
    with pytest.raises(ValueError, match="frame: expected an operator with a case that has the scores of three"):
        Table(apart).rank_correlation()


def test_rank_correlation_draws_the_same_cases_for_all_operators():
    """Copies of an operator add nothing: its interval stays as wide."""
    rng = np.random.default_rng(0)
    rows = [
        {"case": case, "operator": "a", "solver": solver, "psnr": rng.normal(k), "dice": rng.normal(0.3 * k)}
        for case in range(12)
        for k, solver in enumerate("uvwxy")
    ]
    one = pandas.DataFrame(rows)
    copies = pandas.concat([one.assign(operator=name) for name in "abcdef"])
    alone, together = (Table(frame).rank_correlation() for frame in (one, copies))
    for key in ("rho", "low", "high"):
        assert alone[key] == pytest.approx(together[key])


def test_summary_compares_case_by_case():
    """A gain of .01 in each of twelve cases that differ by far more is certain."""
    level = np.linspace(0.3, 0.9, 12)[:, None]
    summary = (
        made_up(level + np.array([0, 0.01, 0.01, -0.02]), 30 + 0 * level + np.arange(4))
        .summary("a")
        .set_index("solver")
    )
    assert summary.loc["b", "dice"] == pytest.approx(0.61)
    assert summary.loc["b", "dice_low"] < 0.55
    assert summary.loc["b", "dice_difference"] == pytest.approx(0.01)
    assert summary.loc["b", "dice_difference_low"] == pytest.approx(0.01)
    assert summary.loc["b", "dice_p"] < 0.001
    assert summary.loc["a", "dice_p"] == 1
    with pytest.raises(ValueError, match="baseline: expected one of"):
        made_up(level + np.zeros(4), level + np.zeros(4)).summary("z")


def test_what_is_found_where_nothing_is_stays_in_the_comparison():
    """Solver b finds a class in the one case that has none."""
    dice = np.array([[0.9, 0.9, 0.9, 0.9], [0.9, 0.9, 0.9, 0.9], [np.nan, 0.0, np.nan, np.nan]])
    summary = made_up(dice, np.zeros((3, 4))).summary("a").set_index("solver")
    assert list(summary["dice_difference"]) == pytest.approx([0, -1 / 3, 0, 0])
    assert list(summary["dice_cases"]) == [2, 3, 2, 2]
