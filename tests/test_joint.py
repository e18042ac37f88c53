"""Joint evaluation: rows, resuming, processes, bad input."""

from __future__ import annotations

import math

import deepinv
import numpy as np
import pandas
import pytest
import torch
from conftest import SIZE, phantom, scanner

import operators
import pnp
from pnp.joint import Table, evaluate
from pnp.joint.evaluation import measure

OPERATORS = {"2x": scanner(2), "4x": scanner(4)}
SOLVERS = ("direct", "tv", "pnp", "oracle")


@pytest.fixture(scope="module")
def table(segmenter, medical):
    cases = [phantom(seed) for seed in range(4)]
    return evaluate(cases, OPERATORS, SOLVERS, segmenter, denoiser=medical, noise=0.01, seed=1)


def test_rows(table):
    frame = table.frame
    assert len(frame) == 4 * 2 * 4
    expected = ["case", "operator", "solver", "psnr", "ssim", "nrmse", "dice", "iou", "hd95", "volume_error"]
    assert {*expected, "dice_grey", "dice_bright", "seconds", "denoiser_calls", "operator_calls"} <= set(frame)
    assert not frame.duplicated(["case", "operator", "solver"]).any()
    means = frame.groupby(["operator", "solver"])[["psnr", "dice", "denoiser_calls"]].mean()
    for operator in OPERATORS:
        assert means.loc[(operator, "direct"), "psnr"] < means.loc[(operator, "pnp"), "psnr"]
        assert means.loc[(operator, "pnp"), "denoiser_calls"] > 0
        assert means.loc[(operator, "direct"), "denoiser_calls"] == 0
    oracle = frame[frame.solver == "oracle"]
    assert (oracle["nrmse"] == 0).all()
    assert oracle.groupby("case")["dice"].nunique().eq(1).all()
    assert frame["dice"].to_numpy() == pytest.approx(frame[["dice_grey", "dice_bright"]].mean(axis=1).to_numpy())


def test_same_seed_same_rows(segmenter, medical, table, tmp_path):
    cases = [phantom(seed) for seed in range(2)]
    again = evaluate(cases, OPERATORS, SOLVERS, segmenter, denoiser=medical, noise=0.01, seed=1)
    both = again.frame.drop(columns="seconds"), table.frame[table.frame.case < 2].drop(columns="seconds")
    pandas.testing.assert_frame_equal(both[0].reset_index(drop=True), both[1].reset_index(drop=True))
    other = evaluate(cases, OPERATORS, ["direct"], segmenter, noise=0.01, seed=2)
    assert (other.frame["psnr"].to_numpy() != table.frame[table.frame.solver == "direct"]["psnr"][:4].to_numpy()).all()


def test_files_and_plot(table, tmp_path):
    table.to_csv(tmp_path / "table.csv")
    pandas.testing.assert_frame_equal(pandas.read_csv(tmp_path / "table.csv"), table.frame, check_dtype=False)
    table.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    frame = table.frame
    first = (frame.operator == frame.operator[0]) & (frame.solver == frame.solver[0])
    assert Table(frame[~first]).plot().axes[0].get_xlabel() == "PSNR in dB"  # a solver on one operator only
    assert "4 cases x 2 operators x 4 solvers" in repr(table)


def count_and_zero(op, y):
    COUNT.append(1)
    return torch.zeros(1, 2, *SIZE)


COUNT: list[int] = []


def test_rows_on_disk_are_not_computed_again(segmenter, tmp_path):
    out, cases = tmp_path / "rows.csv", [phantom(0), phantom(1)]
    solvers = {"nothing": count_and_zero}
    first = evaluate(cases[:1], OPERATORS, solvers, segmenter, out=out)
    assert len(COUNT) == 2
    whole = evaluate(cases, OPERATORS, solvers, segmenter, out=out)
    assert len(COUNT) == 4
    assert len(whole.frame) == 4
    assert len(pandas.read_csv(out)) == 4
    assert whole.frame[whole.frame.case == 0]["psnr"].tolist() == pytest.approx(first.frame["psnr"].tolist())
    part = evaluate(cases[:1], {"2x": OPERATORS["2x"]}, solvers, segmenter, out=out)
    assert (len(COUNT), len(part.frame)) == (4, 1)


def test_rows_of_other_settings_are_computed_again(segmenter, tmp_path):
    """What no state_dict holds: an operator's geometry, the parts of a stack, the algorithm behind a name, pixels."""
    out, angles, (image, labels) = tmp_path / "rows.csv", torch.arange(12) * math.pi / 12, phantom(0)
    case, shape = [(image[:, :1], labels)], image.shape[-2:]

    def rows(op, solver="direct", spacing=1.0, case=case):
        before = out.stat().st_mtime_ns if out.exists() else 0
        evaluate(case, {"op": op}, {"mine": solver}, segmenter, noise=0.0, spacing=spacing, out=out)
        return out.stat().st_mtime_ns > before

    def scanner(spacing):
        return operators.ParallelBeamCT(shape, angles, detectors=30, spacing=spacing)

    assert rows(scanner(1.0))
    assert not rows(scanner(1.0), spacing=[1, 1])
    assert rows(scanner(2.0))
    assert rows(scanner(2.0), spacing=[3, 3])
    assert rows(scanner(2.0), "tv", [3, 3])
    masks = [OPERATORS[name].mask for name in ("2x", "4x")]
    stacks = [operators.stack(operators.MRI(mask), operators.MRI(mask)) for mask in masks]
    assert [rows(stack, case=[phantom(0)]) for stack in (*stacks, stacks[1])] == [True, True, False]


def test_says_what_failed(segmenter):
    cases, op = [phantom(0)], OPERATORS["2x"]
    with pytest.raises(TypeError, match="operators: expected names, got 4"):
        evaluate(cases, {4: op}, ["direct"], segmenter)
    with pytest.raises(TypeError, match="solvers: expected names"):
        evaluate(cases, {"4": op}, [direct], segmenter)
    with pytest.raises(ValueError, match=r"spacing: expected positive sizes of a pixel, got \(0.0, 0.0\)"):
        evaluate(cases, {"4": op}, ["direct"], segmenter, spacing=0)
    with pytest.raises(RuntimeError, match="case 0, operator 4, solver small: "):
        evaluate(cases, {"4": op}, {"small": lambda op, y: torch.zeros(1, 2, 9, 9)}, segmenter)


def test_rows_of_another_experiment_are_computed_again(segmenter, tmp_path):
    out, cases, operator = tmp_path / "rows.csv", [phantom(0), phantom(1)], {"2x": OPERATORS["2x"]}
    experiments = (
        {"cases": cases, "noise": 0.01, "seed": 0},
        {"cases": cases[::-1], "noise": 0.01, "seed": 0},
        {"cases": cases, "noise": 0.5, "seed": 0},
        {"cases": cases, "noise": 0.5, "seed": 9},
        {"cases": cases, "noise": 0.5, "seed": 9, "operators": {"2x": OPERATORS["4x"]}},
    )
    for experiment in experiments:
        experiment = {"operators": operator, "solvers": ("direct", "None"), "segmenter": segmenter} | experiment
        experiment["solvers"] = {"direct": "direct", "None": direct}  # a name that pandas takes for a missing value
        fresh = evaluate(**experiment).frame.drop(columns="seconds")
        resumed = evaluate(**experiment, out=out).frame.drop(columns="seconds")
        pandas.testing.assert_frame_equal(fresh, resumed)
        assert len(pandas.read_csv(out)) == 4
    (tmp_path / "foreign.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="out: expected a file of joint scores"):
        evaluate(**experiment, out=tmp_path / "foreign.csv")


def test_noise_is_added_but_not_told(segmenter, medical):
    """An operator's own noise model is neither used nor seen where the noise is given."""
    own = scanner(2)
    own.set_noise_model(deepinv.physics.GaussianNoise(0.3))
    psnr = [
        evaluate([phantom(0)], {"2x": op}, "pnp", segmenter, denoiser=medical, noise=0.01).frame["psnr"].item()
        for op in (own, OPERATORS["2x"])
    ]
    assert psnr[0] == psnr[1]
    assert own.noise_model.sigma.item() == pytest.approx(0.3)


def test_own_noise_is_repeated():
    """By the seed, whether or not the noise model brings its own random numbers."""
    for generator in (None, torch.Generator().manual_seed(5)):
        op = scanner(2)
        op.set_noise_model(deepinv.physics.GaussianNoise(0.1, rng=generator))
        first, again, other = (measure(op, phantom(0)[0], None, seed) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_failing_solver_is_named_and_rows_are_kept(segmenter, tmp_path):
    def picky(op, y):
        if y.abs().sum() < 1e-3 * op.A(phantom(0)[0]).abs().sum():
            raise ArithmeticError("too dark")
        return direct(op, y)

    cases = [phantom(0), (1e-6 * phantom(1)[0], phantom(1)[1])]
    for workers in (1, 2):
        out = tmp_path / f"{workers}.csv"
        with pytest.raises(RuntimeError, match="case 1, operator 2x, solver picky: too dark"):
            evaluate(cases, {"2x": OPERATORS["2x"]}, {"picky": picky}, segmenter, noise=0.0, workers=workers, out=out)
        assert len(pandas.read_csv(out)) == 1
    with pytest.raises(RuntimeError, match="NaN"):
        evaluate(cases, OPERATORS, {"nan": lambda op, y: torch.nan * direct(op, y)}, segmenter)


def test_lost_class_has_the_largest_distance(segmenter):
    """Nothing found where something is: no Dice, and the image's diagonal."""
    frame = evaluate([phantom(0)], OPERATORS, {"nothing": count_and_zero}, segmenter).frame
    assert (frame["dice"] == 0).all()
    assert frame["hd95"].to_numpy() == pytest.approx(np.hypot(*SIZE))


def direct(op, y):
    return pnp.solve(op, y, None, algorithm="direct").x


def test_processes_give_the_same_rows(segmenter):
    cases = [phantom(seed) for seed in range(2)]
    one, two = (
        evaluate(cases, OPERATORS, {"named": "direct", "own": direct}, segmenter, workers=workers) for workers in (1, 2)
    )
    columns = ["case", "operator", "solver", "psnr", "dice"]
    pandas.testing.assert_frame_equal(one.frame[columns], two.frame[columns])
    assert (
        one.frame[one.frame.solver == "own"]["psnr"].tolist() == one.frame[one.frame.solver == "named"]["psnr"].tolist()
    )


def test_measurements_and_samples_as_cases(segmenter):
    image, labels = phantom(0)
    y = {"2x": OPERATORS["2x"].A(image)}
    samples = {"samples": lambda op, y: torch.stack([0.5 * direct(op, y), 1.5 * direct(op, y)]), "direct": "direct"}
    operator = {"2x": OPERATORS["2x"]}
    frame = evaluate([(y, labels, image)], operator, samples, segmenter).frame
    assert frame["psnr"].nunique() == 1
    bare = evaluate([(y, labels)], operator, samples, segmenter).frame
    assert bare["psnr"].isna().all()
    assert bare["dice"].tolist() == frame["dice"].tolist()
    with pytest.raises(ValueError, match="no measurements for 4x"):
        evaluate([(y, labels)], OPERATORS, samples, segmenter)
    with pytest.raises(ValueError, match="the oracle needs an image"):
        evaluate([(y, labels)], operator, ["oracle"], segmenter)


def test_algorithms_have_a_denoiser_of_their_own(segmenter, medical):
    solvers = {"default": None, "mine": pnp.algorithms.HQS(iterations=2)}
    one, two = (
        evaluate([phantom(0)], {"2x": OPERATORS["2x"]}, solvers, segmenter, **given).frame["psnr"].tolist()
        for given in ({}, {"denoiser": medical})
    )
    assert one == pytest.approx(two, rel=1e-4)


def test_unknown_solvers_are_named_before_anything_runs(segmenter):
    with pytest.raises(ValueError, match="solvers: expected some of"):
        evaluate([phantom(0)], OPERATORS, ["direct", "magic"], segmenter)
    with pytest.raises(TypeError, match="segmenter: expected one such as"):
        evaluate([phantom(0)], OPERATORS, ["direct"], "brain-tissue")


def test_bad_input(segmenter):
    image, labels = phantom(0)
    with pytest.raises(ValueError, match="solvers: expected at least one"):
        evaluate([(image, labels)], OPERATORS, [], segmenter)
    with pytest.raises(ValueError, match="cases: expected labels"):
        evaluate([(image, labels[:, :-1])], OPERATORS, ["direct"], segmenter)
    with pytest.raises(ValueError, match="cases: expected whole labels from 0 to 2"):
        evaluate([(image, labels + 5)], OPERATORS, ["direct"], segmenter)
    with pytest.raises(ValueError, match="noise: expected one for each operator, none for 4x"):
        evaluate([(image, labels)], OPERATORS, ["direct"], segmenter, noise={"2x": 0.1})
    with pytest.raises(ValueError, match="noise: expected finite standard deviations"):
        evaluate([(image, labels)], OPERATORS, ["direct"], segmenter, noise=-1)
    with pytest.raises(ValueError, match="cases: expected an image"):
        evaluate([(image[0], labels)], OPERATORS, ["direct"], segmenter)
