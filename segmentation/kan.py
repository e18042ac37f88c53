"""Kolmogorov-Arnold layers: every connection has a curve of its own, a uniform cubic B-spline, instead of a number.

Liu et al., *KAN: Kolmogorov-Arnold networks* (ICLR 2025); multiplication nodes after Liu et al., *KAN 2.0* (2024).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ELEMENTS = 1 << 18  # of the basis functions worked on at a time, which stay in the processor's cache


def bases(x: Tensor, low: float = -1.0, high: float = 1.0, cells: int = 5) -> Tensor:
    r"""The uniform cubic B-splines on [low, high] at each value of x (..., I): (..., cells + 3, I).

    In units of the knots' distance, each is :math:`B(c) = (\max(2 - c, 0)^3 - 4 \max(1 - c, 0)^3) / 6` of the distance
    c to its middle: the closed form of Cox and de Boor's recursion on equidistant knots.

    :param x: values; far outside the interval all splines are 0.
    :param low: lower end of the interval.
    :param high: upper end.
    :param cells: number of pieces that the interval is cut into.
    """
    wide = _distance(x, low, high, cells).abs_().neg_().add_(2).clamp_min_(0)
    near = (wide - 1).clamp_min_(0)
    near *= near.square().mul_(-4)
    return wide.mul_(wide.square()).add_(near).mul_(1 / 6)


def _slopes(x: Tensor, low: float, high: float, cells: int) -> Tensor:
    """Derivatives of :func:`bases` by x."""
    distance = _distance(x, low, high, cells)
    wide = (2 - distance.abs()).clamp_min_(0)
    near = (wide - 1).clamp_min_(0)
    size = near.square_().mul_(4).sub_(wide.square_())
    return size.mul_(distance.sign_()).mul_(0.5 * cells / (high - low))


def _distance(x: Tensor, low: float, high: float, cells: int) -> Tensor:
    """From each value to the middle of each spline in units of the knots' distance, bounded where all are 0."""
    middles = torch.arange(-1, cells + 2, device=x.device, dtype=x.dtype)
    position = ((x - low) * (cells / (high - low))).clamp(-4, cells + 4)
    return position.unsqueeze(-2) - middles.unsqueeze(-1)


def _features(x: Tensor, interval: tuple) -> Tensor:
    """silu and the splines of each input (N, I), (N, 1 + splines, I), in single precision at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.cat([F.silu(x).unsqueeze(-2), bases(x, *interval)], -2)


def _features_slopes(x: Tensor, interval: tuple) -> Tensor:
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    sigmoid = x.sigmoid()
    silu = sigmoid * (1 + x * (1 - sigmoid))
    return torch.cat([silu.unsqueeze(-2), _slopes(x, *interval)], -2)


def _factor(b: Tensor) -> Tensor:
    """The right factor of products, for oneDNN where it can, since MKL takes twice as long on AMD's processors."""
    able = b.device.type == "cpu" and b.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return b.T.to_mkldnn() if able else b


def _product(a: Tensor, factor: Tensor) -> Tensor:
    """a @ b for the factor of b."""
    return F.linear(a.to_mkldnn(), factor).to_dense() if factor.is_mkldnn else a @ factor


def _rows(x: Tensor, interval: tuple) -> int:
    """How many rows of x (N, I) are worked on at a time."""
    return max(ELEMENTS // (x.shape[1] * (interval[2] + 4)), 1)


class _Curves(torch.autograd.Function):
    """Sum over the inputs of silu and splines times their weights; keeps the input only, not the basis functions."""

    @staticmethod
    def forward(ctx, x, weight, interval, dtype):
        ctx.save_for_backward(x, weight)
        ctx.interval, ctx.dtype = interval, dtype
        factor, parts = _factor(weight.to(dtype).T), x.split(_rows(x, interval))
        return torch.cat([_product(_features(part, interval).flatten(1).to(dtype), factor) for part in parts])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        factor, rows = _factor(weight.to(ctx.dtype)), _rows(x, ctx.interval)
        for part, g, out in zip(x.split(rows), grad.to(ctx.dtype).split(rows), grad_x.split(rows)):
            grad_weight += _product(g.T, _factor(_features(part, ctx.interval).flatten(1).to(ctx.dtype)))
            slopes = _features_slopes(part, ctx.interval)
            out.copy_(slopes.mul_(_product(g, factor).view_as(slopes)).sum(1))
        return grad_x, grad_weight, None, None


class KANLinear(nn.Module):
    r"""A dense layer of curves, :math:`y_o = \sum_i a_{oi}\,\mathrm{silu}(x_i) + s_{oi} \sum_j w_{oij} B_j(x_i)`.

    Function and names of the parameters are those of *efficient-kan*, which U-KAN (Li et al., AAAI 2025) is built on;
    the basis is in closed form, and the backward pass keeps the input only. Basis functions are computed in float32
    whatever the precision of the input; the products run in autocast's precision.

    :param in_features: inputs I.
    :param out_features: outputs O.
    :param grid_size: pieces of each curve.
    :param grid_range: interval the curves live on; outside of it, the silu term alone is left.
    """

    def __init__(
        self, in_features: int, out_features: int, grid_size: int = 5, grid_range: tuple[float, float] = (-1.0, 1.0)
    ):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.interval = (*map(float, grid_range), grid_size)
        low, high, cells = self.interval
        knots = low + torch.arange(-3, cells + 4) * ((high - low) / cells)
        self.register_buffer("grid", knots.expand(in_features, -1).contiguous())  # published checkpoints hold it
        self.base_weight = nn.Parameter(torch.empty(out_features, in_features))
        self.spline_weight = nn.Parameter(0.02 * torch.randn(out_features, in_features, cells + 3))
        self.spline_scaler = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.kaiming_uniform_(self.base_weight, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.spline_scaler, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """(..., O) of inputs (..., I)."""
        if x.shape[-1] != self.in_features:
            raise ValueError(f"x: expected {self.in_features} features in the last dimension, got {tuple(x.shape)}")
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        splines = (self.spline_weight * self.spline_scaler.unsqueeze(-1)).transpose(1, 2)
        weight = torch.cat([self.base_weight.unsqueeze(1), splines], 1).flatten(1)
        if torch.compiler.is_compiling():  # for exports, which know plain operations only
            return _features(x, self.interval).flatten(-2).to(dtype) @ weight.to(dtype).T
        with torch.autocast(x.device.type, enabled=False):
            y = _Curves.apply(x.reshape(-1, self.in_features), weight, self.interval, dtype)
        return y.view(*x.shape[:-1], self.out_features)

    @torch.no_grad()
    def curves(self, points: Tensor) -> Tensor:
        """The curve of each connection at some points (P,), (O, I, P)."""
        splines = (self.spline_weight * self.spline_scaler.unsqueeze(-1)) @ bases(points, *self.interval)
        return splines + self.base_weight.unsqueeze(-1) * F.silu(points)


class SharedKAN(nn.Module):
    r"""One curve for each input, then a linear map: :math:`y = W \varphi(x)`, the light form of a KAN layer.

    :math:`\varphi_i(x_i) = a_i\,\mathrm{silu}(x_i) + \sum_j w_{ij} B_j(x_i)`; the parameters grow with I (O + splines)
    instead of I O splines.

    :param in_features: inputs I.
    :param out_features: outputs O.
    :param grid_size: pieces of each curve.
    :param grid_range: interval the curves live on.
    """

    def __init__(
        self, in_features: int, out_features: int, grid_size: int = 8, grid_range: tuple[float, float] = (-3.0, 3.0)
    ):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.interval = (*map(float, grid_range), grid_size)
        self.base_weight = nn.Parameter(torch.ones(in_features))
        self.spline_weight = nn.Parameter(0.02 * torch.randn(in_features, grid_size + 3))
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """(..., O) of inputs (..., I)."""
        return self.linear(self.activation(x))

    def activation(self, x: Tensor) -> Tensor:
        """The curves at the inputs, (..., I)."""
        weight = torch.cat([self.base_weight.unsqueeze(0), self.spline_weight.T])
        if torch.compiler.is_compiling():
            return (_features(x, self.interval) * weight).sum(-2).to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            y = _Activation.apply(x.reshape(-1, self.in_features), weight, self.interval)
        return y.view(x.shape)

    @torch.no_grad()
    def curves(self, points: Tensor) -> Tensor:
        """The curve of each input at some points (P,), (I, P)."""
        splines = self.spline_weight @ bases(points, *self.interval)
        return splines + self.base_weight.unsqueeze(-1) * F.silu(points)


class MultKAN(nn.Module):
    """A layer of curves some of whose outputs are products of two of its sums (*KAN 2.0*).

    :param in_features: inputs I.
    :param out_features: outputs O.
    :param products: how many of the outputs, the last ones, are products.
    :param layer: :class:`KANLinear` or :class:`SharedKAN`.
    """

    def __init__(self, in_features: int, out_features: int, products: int, layer: type[nn.Module] = KANLinear):
        super().__init__()
        if not 0 <= products <= out_features:
            raise ValueError(f"products: expected 0 to {out_features}, got {products}")
        self.sums, self.products = out_features - products, products
        self.layer = layer(in_features, out_features + products)

    def forward(self, x: Tensor) -> Tensor:
        """(..., O) of inputs (..., I)."""
        sums, first, second = self.layer(x).split([self.sums, self.products, self.products], -1)
        return torch.cat([sums, first * second], -1)


class _Activation(torch.autograd.Function):
    """One curve for each input; keeps the input only."""

    @staticmethod
    def forward(ctx, x, weight, interval):
        ctx.save_for_backward(x, weight)
        ctx.interval = interval
        y, rows = torch.empty_like(x), _rows(x, interval)
        for part, out in zip(x.split(rows), y.split(rows)):
            out.copy_(_features(part, interval).mul_(weight).sum(1))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        rows = _rows(x, ctx.interval)
        for part, g, out in zip(x.split(rows), grad.split(rows), grad_x.split(rows)):
            grad_weight += _features(part, ctx.interval).mul_(g.unsqueeze(1)).sum(0)
            out.copy_(_features_slopes(part, ctx.interval).mul_(weight).sum(1).mul_(g))
        return grad_x, grad_weight, None
