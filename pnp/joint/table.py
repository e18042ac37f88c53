"""What :func:`pnp.joint.evaluate` found, and its statistics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
from matplotlib.figure import Figure
from scipy import stats

from denoisers.weights import replace
from segmentation.evaluation import interval

KEYS = ("case", "operator", "solver")
SCORES = ("psnr", "ssim", "nrmse", "dice", "iou", "hd95", "surface_dice", "volume_error", "seconds")


@dataclass(repr=False)
class Table:
    """Scores of reconstructions and their segmentations.

    :param frame: a row for each case, operator and solver; the columns are named at :func:`pnp.joint.evaluate`.
    """

    frame: pandas.DataFrame

    def __repr__(self) -> str:
        cases, operators, solvers = (self.frame[key].nunique() for key in KEYS)
        means = self.frame.groupby(["operator", "solver"], sort=False)[["psnr", "dice"]].mean().round(4)
        return f"Table of {cases} cases x {operators} operators x {solvers} solvers\n{means}"

    def summary(self, baseline: str | None = None, level: float = 0.95, seed: int = 0) -> pandas.DataFrame:
        """Means over the cases for each operator and solver, with bootstrap intervals.

        A case counts for a score where it has one: without a class in the truth, a segmentation that found none has
        no Dice, one that found some has 0. So that failures of that kind stay in the differences, such a case counts 1
        there for the one without a score.

        :param baseline: a solver that the others are compared with, case by case: the mean difference in PSNR and
            Dice, its bootstrap interval, and the p-value of Wilcoxon's signed-rank test.
        :param level: of the intervals.
        :return: a row for each operator and solver; columns ``cases``, ``dice_cases`` (those with a Dice), ``<score>``,
            ``<score>_low``, ``<score>_high`` and, with a baseline, ``<score>_difference``, ``..._difference_low``,
            ``..._difference_high`` and ``<score>_p``.
        :raises ValueError: for a baseline that is not among the solvers.
        """
        if baseline is not None and baseline not in set(self.frame["solver"]):
            raise ValueError(f"baseline: expected one of {', '.join(self.frame['solver'].unique())}, got {baseline!r}")
        rows = []
        for (operator, solver), part in self.frame.groupby(["operator", "solver"], sort=False):
            row = {"operator": operator, "solver": solver, "cases": len(part), "dice_cases": part["dice"].count()}
            for score in SCORES:
                values = part[score].dropna().to_numpy()
                row[score] = values.mean() if len(values) else np.nan
                row[f"{score}_low"], row[f"{score}_high"] = interval(values, level, seed)
            if baseline is not None:
                other = self.frame[(self.frame["operator"] == operator) & (self.frame["solver"] == baseline)]
                for score in ("psnr", "dice"):
                    values, others = (rows.set_index("case")[score] for rows in (part, other))
                    empty = 1.0 if score == "dice" else None  # rightly found nothing
                    differences = values.sub(others, fill_value=empty).reindex(values.index.intersection(others.index))
                    differences = differences.dropna().to_numpy()
                    row[f"{score}_difference"] = differences.mean() if len(differences) else np.nan
                    low, high = interval(differences, level, seed)
                    row |= {f"{score}_difference_low": low, f"{score}_difference_high": high}
                    row[f"{score}_p"] = _signed_rank(differences)
            rows.append(row)
        return pandas.DataFrame(rows)

    def rank_correlation(
        self, first: str = "psnr", second: str = "dice", level: float = 0.95, draws: int = 2000, seed: int = 0
    ) -> dict:
        """Spearman's correlation between the orders in which two scores put the solvers.

        For each operator, the solvers are ordered by their means over the cases; the interval is bootstrapped over the
        cases. The oracle, rows without the scores, and operators with fewer than three solvers that share a case are
        left out.

        :return: ``rho``, the mean over the operators, with its interval ``low``, ``high``; and ``by_operator``, a
            dictionary of the same for each.
        :raises ValueError: where there are fewer than three solvers to order.
        """
        frame = self.frame[self.frame["solver"] != "oracle"].dropna(subset=[first, second])
        if frame["solver"].nunique() < 3:
            raise ValueError(f"frame: expected at least three solvers to order, got {frame['solver'].nunique()}")
        cases, by_operator, all_draws = frame["case"].unique(), {}, []
        chosen = np.random.default_rng(seed).integers(len(cases), size=(draws, len(cases)))
        for operator, part in frame.groupby("operator", sort=False):
            tables = [part.pivot(index="case", columns="solver", values=score).dropna() for score in (first, second)]
            common = tables[0].index.intersection(tables[1].index)
            if not len(common) or tables[0].shape[1] < 3:
                continue
            a, b = (table.loc[common].reindex(cases).to_numpy() for table in tables)
            drawn = [_spearman(a[k], b[k]) for k in chosen]
            by_operator[operator] = {"rho": _spearman(a, b)} | _range(drawn, level)
            all_draws.append(drawn)
        if not by_operator:
            raise ValueError("frame: expected an operator with a case that has the scores of three solvers, got none")
        rho = float(np.mean([value["rho"] for value in by_operator.values()]))
        return {"rho": rho} | _range(np.mean(all_draws, 0), level) | {"by_operator": by_operator}

    def plot(self, path: str | Path | None = None) -> Figure:
        """Dice against PSNR (a marker for each solver, a colour for each operator; lines for the oracle and, dotted,
        the direct reconstruction), and Dice along the operators for each solver.

        :param path: picture to write.
        """
        frame = self.frame
        means = frame.groupby(["operator", "solver"], sort=False)[["psnr", "dice"]].mean()
        operators, solvers = frame["operator"].unique(), [s for s in frame["solver"].unique() if s != "oracle"]
        means = means.reindex(pandas.MultiIndex.from_product([operators, frame["solver"].unique()]))
        figure = Figure(figsize=(12, 4.6), layout="constrained")
        scatter, curves = figure.subplots(1, 2)
        for k, solver in enumerate(solvers):
            for c, operator in enumerate(operators):
                psnr, dice = means.loc[(operator, solver)]
                label = solver if c == 0 else None
                scatter.scatter(psnr, dice, marker="osD^vP*Xph<>d"[k % 13], color=f"C{c}", label=label, zorder=3)
            line = [means.loc[(operator, solver), "dice"] for operator in operators]
            bounds = [
                interval(frame[(frame.operator == o) & (frame.solver == solver)]["dice"].dropna()) for o in operators
            ]
            low, high = zip(*bounds)
            curves.plot(range(len(operators)), line, marker="osD^vP*Xph<>d"[k % 13], label=solver)
            curves.fill_between(range(len(operators)), low, high, alpha=0.12)
        for c, operator in enumerate(operators):
            scatter.plot([], [], color=f"C{c}", linewidth=4, label=operator)
            for name, style in (("oracle", "-"), ("direct", ":")):
                if name in set(frame["solver"]):
                    scatter.axhline(means.loc[(operator, name), "dice"], color=f"C{c}", linestyle=style, linewidth=0.8)
        if "oracle" in set(frame["solver"]):
            oracle = [means.loc[(operator, "oracle"), "dice"] for operator in operators]
            curves.plot(range(len(operators)), oracle, color="black", linewidth=1, label="oracle")
        scatter.set(xlabel="PSNR in dB", ylabel="Dice")
        curves.set(xticks=range(len(operators)), xticklabels=operators, ylabel="Dice")
        for axis in (scatter, curves):
            axis.legend(fontsize=7)
            axis.grid(alpha=0.3)
        if path is not None:
            from pnp.report import write_figure

            write_figure(figure, path)
        return figure

    def to_csv(self, path: str | Path) -> Path:
        """Write the rows as CSV."""
        return replace(path, self.frame.to_csv(index=False).encode())

    def to_parquet(self, path: str | Path) -> Path:
        """Write the rows as Parquet (``pip install pyarrow``)."""
        return replace(path, self.frame.to_parquet(index=False))


def _signed_rank(differences: np.ndarray) -> float:
    """The p-value of Wilcoxon's test, NaN without a pair."""
    if not len(differences):
        return float("nan")
    return float(stats.wilcoxon(differences).pvalue) if np.any(differences) else 1.0


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Between the orders of the columns by their means over the rows that are there, NaN without any."""
    if np.isnan(a).all():
        return float("nan")
    a, b = (stats.rankdata(np.nanmean(values, 0)) for values in (a, b))
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else 0.0


def _range(values: np.ndarray, level: float) -> dict[str, float]:
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return {"low": float(low), "high": float(high)}
