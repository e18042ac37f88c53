"""Joint evaluation: rows, statistics, resuming, processes, samples and fine-tuning."""

from __future__ import annotations

import math

import deepinv
import numpy as np
import pandas
import pytest
import torch

import operators
import pnp
from operators import masks
from pnp.joint import SegmentedSamples, Table, error_propagation, evaluate, finetune, segment_samples, through
from pnp.joint.evaluation import measure
from pnp.joint.uncertainty import calibrated
from segmentation import Segmenter, metrics

SIZE = (48, 40)


class Threshold(torch.nn.Module):
    """Brightness in three classes."""

    in_channels = 1

    def forward(self, x):
        return 10 * torch.cat([0 * x, x - 1.1, 2 * x - 4.1], 1)


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter(Threshold(), ("background", "grey", "bright"))


def phantom(seed):
    rng = np.random.default_rng(seed)
    image, labels = torch.zeros(1, 1, *SIZE), torch.zeros(1, *SIZE, dtype=torch.long)
    row, column = rng.integers(8, 16, 2)
    image[..., row : row + 20, column : column + 16] = 0.6
    labels[:, row : row + 20, column : column + 16] = 1
    image[..., row + 6 : row + 13, column + 5 : column + 11] = 1.0
    labels[:, row + 6 : row + 13, column + 5 : column + 11] = 2
    return torch.cat([image, torch.zeros_like(image)], 1), labels


def scanner(acceleration):
    return operators.MRI(masks.cartesian(SIZE, acceleration, calibration=8, seed=0))


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


def test_files_and_plot(table, tmp_path):
    table.to_csv(tmp_path / "table.csv")
    pandas.testing.assert_frame_equal(pandas.read_csv(tmp_path / "table.csv"), table.frame, check_dtype=False)
    table.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    frame = table.frame
    first = (frame.operator == frame.operator[0]) & (frame.solver == frame.solver[0])
    assert Table(frame[~first]).plot().axes[0].get_xlabel() == "PSNR in dB"  # a solver on one operator only
    assert "4 cases x 2 operators x 4 solvers" in repr(table)


def test_segmented_samples(segmenter):
    image, labels = phantom(0)
    samples = torch.stack([image + 0.02 * torch.randn(image.shape) for _ in range(6)])
    found = segment_samples(samples, segmenter)
    assert found.labels.shape == (6, 1, *SIZE)
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(1, *SIZE))
    assert (found.consensus == labels).float().mean() > 0.95
    low, high = found.volume_interval()
    assert (low <= found.volumes.mean(0)).all()
    assert (found.volumes.mean(0) <= high).all()
    assert (found.agreement().mean(0) > 0.8).all()
    assert (found.expected_dice() > 0.8).all()
    assert "grey" in repr(found)
    with pytest.raises(ValueError, match="samples: expected at least two"):
        segment_samples(samples[:1], segmenter)


def test_error_propagation_counts_the_error_where_the_mask_is_wrong(segmenter):
    image, _ = phantom(0)
    found = segment_samples(torch.stack([image, image]), segmenter)
    truth = found.consensus.clone()
    truth[:, 8:24, 8:24] = (truth[:, 8:24, 8:24] + 1) % len(segmenter.classes)
    error = torch.zeros_like(image)
    error[:, 0] = 0.1 + 0.2 * (truth != found.consensus)  # three times as large there
    figure = error_propagation(torch.stack([image, image]) + error, found, image, truth)
    assert "error 3.0 x elsewhere" in figure.axes[-1].get_title()
    right = error_propagation(torch.stack([image, image]), found, image, found.consensus)
    assert right.axes[-1].get_title() == "nothing wrong"
    with pytest.raises(ValueError, match="labels: expected the segmentations' shape"):
        error_propagation(torch.stack([image, image]), found, image, truth[:, 1:])


def test_expected_dice_is_the_mean_dice_of_what_may_be_true():
    """Pixels whose class is drawn with the probabilities that the segmenter gives."""
    shares = torch.linspace(0.02, 0.98, 900).view(1, 30, 30)
    labels = (shares > 0.5).long()[None]
    found = SegmentedSamples(labels, ("no", "yes"), torch.stack([1 - shares, shares], 1))
    drawn = torch.stack([torch.bernoulli(shares) for _ in range(200)]).long()
    dice = torch.stack([metrics.dice(labels[0], truth, 2) for truth in drawn]).mean()
    assert found.expected_dice().item() == pytest.approx(dice.item(), abs=5e-3)


def test_volume_intervals_cover_and_are_widened():
    """Sizes drawn from one distribution, six samples each: about 95 % of the intervals hold another draw."""
    rng = np.random.default_rng(0)

    def case(spread):
        mean, found = rng.integers(300, 600), []
        for size in np.round(rng.normal(mean, 20, 7)).astype(int):
            labels = torch.zeros(1, 40, 40, dtype=torch.long)
            labels.view(-1)[:size] = 1
            found.append(labels)
        centre = found[0].sum().item()
        for labels in found[1:]:  # the samples' spread about their own mean, shrunk
            shrunk = round(mean + spread * (labels.sum().item() - mean))
            labels.zero_()
            labels.view(-1)[:shrunk] = 1
        assert centre > 0
        return SegmentedSamples(torch.stack(found[1:]), ("no", "yes")), found[0]

    def coverage(cases, widening=1.0):
        inside = []
        for found, truth in cases:
            found.widening = widening
            low, high = found.volume_interval()
            inside.append(low.item() <= truth.sum().item() <= high.item())
        return np.mean(inside)

    assert 0.9 <= coverage([case(1.0) for _ in range(200)]) <= 0.99
    narrow = [case(0.3) for _ in range(400)]
    assert coverage(narrow) < 0.7
    held, truth = zip(*narrow[:200])
    factor = calibrated(held, truth)
    assert 0.9 <= coverage(narrow[200:], factor) <= 0.99
    for found in held:
        found.widening = 7.0
    assert calibrated(held, truth) == factor
    with pytest.raises(ValueError, match="at least 19 structures, got 18"):
        calibrated(held[:18], truth[:18])
    with pytest.raises(ValueError, match="level: expected a share"):
        held[0].volume_interval(95)


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


def test_training_through_reconstructions():
    pairs = [(image[0, :1].numpy(), labels[0].numpy().astype(np.uint8)) for image, labels in map(phantom, range(8))]
    seen = through(pairs, OPERATORS, "direct", noise=0.05, share=0.5, seed=1)
    changed = [not np.array_equal(before[0], after[0]) for before, after in zip(pairs, seen)]
    assert 0 < sum(changed) < 8
    assert all(before[1] is after[1] for before, after in zip(pairs, seen))
    assert all(after[0].shape == (1, *SIZE) and (after[0] >= 0).all() for after in seen)
    again = through(pairs, OPERATORS, "direct", noise=0.05, share=0.5, seed=1)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(seen, again))
    with pytest.raises(ValueError, match="share: expected 0 to 1"):
        through(pairs, OPERATORS, share=2)


def test_finetuning_lowers_its_loss(segmenter, medical):
    """On two cases and one operator; the given denoiser stays as it is."""
    cases, operator = [phantom(0), phantom(1)], {"4x": OPERATORS["4x"]}
    before = [p.clone() for p in medical.parameters()]
    options = {"iterations": 3, "steps": 12, "learning_rate": 3e-4}
    trained, _ = finetune(cases, operator, medical, segmenter, weight=0.0, **options)
    assert all(torch.equal(a, b) for a, b in zip(before, medical.parameters()))
    solvers = {
        name: (lambda op, y, network=network: pnp.solve(op, y, network, algorithm="hqs", iterations=3).x)
        for name, network in (("before", medical), ("after", trained))
    }
    means = evaluate(cases, operator, solvers, segmenter).frame.groupby("solver")["psnr"].mean()
    assert means["after"] > means["before"] + 0.2
    with pytest.raises(ValueError, match="weight: expected 0 to 1"):
        finetune(cases, operator, medical, segmenter, weight=2)


def test_finetuning_on_measurements(segmenter, medical):
    """The same whether noiseless measurements are made or given."""
    operator = {"4x": OPERATORS["4x"]}
    image, labels = phantom(0)
    measured = {"4x": operator["4x"].A(image)}
    options = {"iterations": 2, "steps": 2, "noise": 0.0}
    pair = [
        finetune([case], operator, medical, segmenter, **options)[0]
        for case in ((image, labels), (measured, labels, image))
    ]
    for first, second in zip(*(network.parameters() for network in pair)):
        torch.testing.assert_close(first, second)
    with pytest.raises(ValueError, match="cases: expected an image in each case to learn from, got none in case 0"):
        finetune([(measured, labels)], operator, medical, segmenter)


def test_vertebra_task(tmp_path, monkeypatch, segmenter):
    """Made-up slices through the built-in task: operators of rising difficulty, each with its own noise."""
    from pnp.joint import tasks

    monkeypatch.setattr(tasks.segmentation, "load", lambda task, model: segmenter)
    pairs = [phantom(seed) for seed in range(3)]
    images, labels = (np.stack([part.numpy()[(0,) * (part.ndim - 2)] for part in parts]) for parts in zip(*pairs))
    np.savez(tmp_path / "slices.npz", images=images, masks=labels.astype(np.uint8))
    task = tasks.vertebra(tmp_path / "slices.npz", count=2)
    assert [tuple(image.shape) for image, _ in task.cases] == [(1, 1, *SIZE)] * 2
    frame = task.evaluate(["direct", "oracle"]).frame
    psnr = frame[frame.solver == "direct"].groupby("operator", sort=False)["psnr"].mean()
    assert list(psnr.index) == ["60 views", "30 views", "low dose"]
    assert psnr["60 views"] > psnr["30 views"] > 10
    with pytest.raises(ValueError, match="count: expected 1 to 3"):
        tasks.vertebra(tmp_path / "slices.npz", count=9)


def test_brain_task_of_the_bundled_template():
    from pnp.joint import tasks

    task = tasks.brain_tissue()
    assert [tuple(image.shape) for image, _ in task.cases] == [(1, 2, 192, 192)] * 3
    frame = task.evaluate(["direct", "oracle"]).frame
    assert (frame[frame.solver == "oracle"]["dice"] > 0.8).all()


def test_brain_task_wants_enough_slices(tmp_path):
    import nibabel

    from pnp.joint import tasks

    for name in ("image", "labels"):
        nibabel.save(nibabel.Nifti1Image(np.ones((8, 28, 8), np.uint8), np.eye(4)), tmp_path / f"{name}.nii.gz")
    with pytest.raises(ValueError, match="images: expected volumes of more than 30 labelled slices"):
        tasks.brain_tissue([tmp_path / "image.nii.gz"], [tmp_path / "labels.nii.gz"])


def test_brain_and_breast_tasks(data):
    from pnp.joint import tasks

    volume = data / "ibsr18" / "IBSR_04.nii.gz"
    brain = tasks.brain_tissue([volume], [volume.with_name("IBSR_04_seg.nii.gz")], count=1, size=128)
    assert brain.cases[0][0].shape == (1, 2, 128, 128)
    frame = brain.evaluate(["direct", "oracle"]).frame
    assert (frame[frame.solver == "oracle"]["dice"] > 0.6).all()
    breast = tasks.breast_lesion(data / "busi256" / "train.npz", count=1)
    assert breast.cases[0][0].shape == (1, 1, 256, 256)
    assert len(breast.operators) == 3
