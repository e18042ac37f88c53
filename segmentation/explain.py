"""What a segmentation network's answer rests on: its curves, its equations' paths, the pixels that matter."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from segmentation.kan import KANLinear, SharedKAN, bases
from segmentation.library import Segmenter, standardise
from segmentation.ode import SecondOrderBlock
from segmentation.unet import fit_multiple

CurveLayer = KANLinear | SharedKAN


def inputs(network: nn.Module, images: Tensor, most: int = 2000) -> dict[str, Tensor]:
    """What each layer of curves is given for some images: a sample of at most ``most`` rows (N, I) by the layer's name.

    :param network: any network with :class:`KANLinear` or :class:`SharedKAN` layers.
    :param images: what the network takes, (B, C, H, W).
    """
    seen, hooks = {}, []
    for name, layer in network.named_modules():
        if isinstance(layer, CurveLayer):

            def keep(layer, arguments, name=name):
                rows = arguments[0].detach().float().flatten(0, -2)
                chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most]
                seen[name] = rows[chosen.to(rows.device)]

            hooks.append(layer.register_forward_pre_hook(keep))
    try:
        with torch.no_grad():
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise ValueError("network: expected one with layers of curves, found none")
    return seen


@torch.no_grad()
def contributions(layer: CurveLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the rows of x (N, I) of what each connection adds to the output, (O, I)."""
    x = x.to(next(layer.parameters()).device)
    if isinstance(layer, SharedKAN):
        values, weight = layer.activation(x), layer.linear.weight
        return weight * values.mean(0), weight.abs() * values.std(0)
    values = [_curves(layer, x, i) for i in range(layer.in_features)]
    return torch.stack([v.mean(0) for v in values], 1), torch.stack([v.std(0) for v in values], 1)


def _curves(layer: CurveLayer, x: Tensor, i: int) -> Tensor:
    """The i-th input's curves at the rows of x (N, I): (N, O), or (N, 1) where one curve serves all outputs."""
    if isinstance(layer, SharedKAN):
        return layer.activation(x)[:, i : i + 1]
    weight = layer.spline_weight[:, i] * layer.spline_scaler[:, i, None]
    return bases(x[:, i], *layer.interval).T @ weight.T + F.silu(x[:, i, None]) * layer.base_weight[:, i]


def importance(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """How much each input of each layer of curves moves the layer's output: root of the summed variances, (I,)."""
    layers = dict(network.named_modules())
    return {name: contributions(layers[name], x)[1].norm(dim=0) for name, x in inputs(network, images).items()}


class Pruned(nn.Module):
    """A layer of curves of some of its inputs; the others are counted at their mean contribution."""

    def __init__(self, layer: CurveLayer, kept: Tensor, x: Tensor):
        super().__init__()
        mean, _ = contributions(layer, x)
        left_out = torch.ones(layer.in_features, dtype=torch.bool, device=mean.device).index_fill(0, kept, False)
        self.register_buffer("kept", kept)
        self.register_buffer("constant", mean[:, left_out].sum(1))
        self.layer = copy.deepcopy(layer)
        self.layer.in_features = len(kept)
        for name in ("base_weight", "spline_weight", "spline_scaler"):
            if hasattr(layer, name):
                axis = 1 if isinstance(layer, KANLinear) else 0
                setattr(self.layer, name, nn.Parameter(getattr(layer, name).index_select(axis, kept)))
        if isinstance(layer, SharedKAN):
            self.layer.linear.weight = nn.Parameter(layer.linear.weight[:, kept])

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[..., self.kept]) + self.constant


def prune(network: nn.Module, images: Tensor, keep: float) -> nn.Module:
    """A copy of a network whose layers of curves see only their most important inputs, and are that much smaller.

    :param network: any network with layers of curves.
    :param images: what importance is measured on, (B, C, H, W).
    :param keep: share of each layer's inputs to keep, above 0 up to 1.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep: expected a share above 0 up to 1, got {keep}")

    def smaller(layer, x):
        rank = contributions(layer, x)[1].norm(dim=0).argsort(descending=True)
        return Pruned(layer, rank[: max(round(keep * layer.in_features), 1)].sort().values, x)

    return _replaced(network, images, smaller)


FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {  # of the input, shifted and scaled to mean 0 and deviation 1
    "0": torch.zeros_like,
    "u": lambda u: u,
    "u^2": torch.square,
    "|u|": torch.abs,
    "tanh(u)": torch.tanh,
    "exp(u)": lambda u: u.clamp(max=6).exp(),
    "exp(-u)": lambda u: (-u).clamp(max=6).exp(),
    "sin(2u)": lambda u: (2 * u).sin(),
    "cos(2u)": lambda u: (2 * u).cos(),
    "exp(-u^2)": lambda u: (-u.square()).exp(),
    "u^3": lambda u: u**3,
    "relu(u)": F.relu,
    "relu(-u)": lambda u: F.relu(-u),
}


class Symbolic(nn.Module):
    """A layer of curves in which each curve is one of :data:`FORMULAS`, times a number, plus a number.

    Fitted in least squares to where the layer's inputs are. ``names`` are the formulas of the curves, ``fit`` the share
    of each curve's variance that its formula explains.
    """

    def __init__(self, layer: CurveLayer, x: Tensor):
        super().__init__()
        self.register_buffer("middle", x.mean(0))
        self.register_buffer("scale", x.std(0).clamp_min(1e-6))
        self.linear = copy.deepcopy(layer.linear) if isinstance(layer, SharedKAN) else None
        u = (x - self.middle) / self.scale
        slopes, offsets, choices, fits = [], [], [], []
        functions = torch.stack([function(u) for function in FORMULAS.values()])  # (F, N, I)
        centred = functions - functions.mean(1, keepdim=True)
        power = centred.square().mean(1)  # (F, I)
        with torch.no_grad():
            for i in range(layer.in_features):
                values = _curves(layer, x, i)
                deviation = values - values.mean(0)
                products = centred[:, :, i] @ deviation / len(x)  # (F, O)
                slope = products / power[:, i, None].clamp_min(1e-12)
                explained = slope * products / deviation.square().mean(0).clamp_min(1e-12)
                best = explained.argmax(0)
                slope = slope.gather(0, best[None])[0]
                slopes.append(slope)
                offsets.append(values.mean(0) - slope * functions[:, :, i].mean(1)[best])
                choices.append(best)
                fits.append(explained.max(0).values)
        best, slope = torch.stack(choices, 1), torch.stack(slopes, 1)  # (O, I), or (1, I) where curves are shared
        weight = torch.zeros(len(FORMULAS), *best.shape, device=x.device).scatter_(0, best[None], slope[None])
        self.register_buffer("weight", weight)
        self.register_buffer("offset", torch.stack(offsets, 1))
        self.fit = torch.stack(fits, 1)
        self.names = [[list(FORMULAS)[k] for k in row] for row in best.tolist()]

    def forward(self, x: Tensor) -> Tensor:
        u = (x.float() - self.middle) / self.scale
        values = (function(u) for function in FORMULAS.values())
        if self.linear is not None:
            return self.linear(sum(weight[0] * value for weight, value in zip(self.weight, values)) + self.offset[0])
        return sum(value @ weight.T for weight, value in zip(self.weight, values)) + self.offset.sum(1)


def symbolic(network: nn.Module, images: Tensor) -> nn.Module:
    """A copy of a network with a formula in place of each curve, see :class:`Symbolic`."""
    return _replaced(network, images, Symbolic)


def _replaced(network: nn.Module, images: Tensor, make: Callable[[CurveLayer, Tensor], nn.Module]) -> nn.Module:
    changed = copy.deepcopy(network)
    for name, x in inputs(network, images).items():
        parent, _, last = name.rpartition(".")
        setattr(changed.get_submodule(parent), last, make(network.get_submodule(name), x))
    return changed


@torch.no_grad()
def unsettled(network: nn.Module, x: Tensor) -> Tensor:
    """Where the answer of an :class:`segmentation.ImplicitUKAN2` still depends on the solver: how far the most affected
    class's probability moves when twice as many steps, half as long, are made, (B, H, W).

    :raises ValueError: for a network without equations, or whose solver chooses its steps itself.
    """
    fine = copy.deepcopy(network)
    blocks = [block for block in fine.modules() if isinstance(block, SecondOrderBlock)]
    if not blocks or any(block.solver == "dopri5" for block in blocks):
        raise ValueError(f"network: expected equations solved with fixed steps, got {type(network).__name__}")
    for block in blocks:
        block.steps = 2 * block.steps
    return (network(x).softmax(1) - fine(x).softmax(1)).abs().amax(1)


def attribution(
    segmenter: Segmenter, x: Tensor, target: int, method: str = "integrated-gradients", layer: nn.Module | None = None
) -> Tensor:
    """How much each pixel matters for a class where the segmenter finds it, (B, H, W): by integrated gradients, whether
    it speaks for the class or against it, by Grad-CAM, how far it speaks for it.

    :param segmenter: the segmenter.
    :param x: images (B, C, H, W).
    :param target: class number.
    :param method: ``"integrated-gradients"`` (Sundararajan et al., ICML 2017), from the blurred image, or
        ``"grad-cam"`` (Selvaraju et al., ICCV 2017), by captum.
    :param layer: for Grad-CAM, default the encoder's last level.
    :return: 0 all over where the class is not found in an image.
    :raises ValueError: for another method, a class that there is not, or without a layer.
    """
    from captum.attr import IntegratedGradients, LayerGradCam

    if not 0 <= target < len(segmenter.classes):
        raise ValueError(f"target: expected a class from 0 to {len(segmenter.classes) - 1}, got {target}")
    x, (height, width) = standardise(x.float()), x.shape[-2:]
    if method == "grad-cam":
        x, *_ = fit_multiple(x, x.shape[1], 32)  # as the networks do; their coarse maps are of the whole
    network = segmenter.network
    region = (network(x).argmax(1) == target).detach()

    def score(images):
        chosen = network(images)[:, target].masked_fill(~region.repeat(len(images) // len(region), 1, 1), 0)
        return chosen.flatten(1).sum(1)

    if method == "integrated-gradients":
        found = IntegratedGradients(score).attribute(x, _blurred(x), n_steps=16, internal_batch_size=len(x))
        return found.abs().sum(1).detach()
    if method != "grad-cam":
        raise ValueError(f"method: expected integrated-gradients or grad-cam, got {method!r}")
    layer = layer or getattr(network, "encoder", [None])[-1]
    if layer is None:
        raise ValueError(f"layer: expected a layer of {type(network).__name__} to look at, got None")
    with torch.enable_grad():
        found = LayerGradCam(score, layer).attribute(x.requires_grad_(), relu_attributions=True)
    return F.interpolate(found.detach(), x.shape[-2:], mode="bilinear")[:, 0, :height, :width]


def _blurred(x: Tensor) -> Tensor:
    for _ in range(3):
        x = F.avg_pool2d(F.pad(x, (10, 10, 10, 10), mode="replicate"), 21, 1)
    return x


@torch.no_grad()
def deletion(
    segmenter: Segmenter, x: Tensor, saliency: Tensor, target: int, points: int = 20, insert: bool = False
) -> np.ndarray:
    """Probability of a class, where it was found, as the most salient pixels are blurred away, (points + 1,).

    A faithful map makes it fall fast; the mean of the curve is its area (Petsiuk et al., *RISE*, BMVC 2018).

    :param segmenter: the segmenter.
    :param x: one image (1, C, H, W).
    :param saliency: (1, H, W), larger for pixels that matter more.
    :param target: class number.
    :param points: in how many parts the pixels are taken away.
    :param insert: start from the blurred image and put the most salient pixels back first; a faithful map makes the
        probability rise fast.
    :raises ValueError: where the class is not found.
    """
    region = segmenter.predict(x)[0] == target
    if not region.any():
        raise ValueError(f"target: expected a class that is found in the image, {target} is not")
    blurred = _blurred(x)
    order = saliency.flatten().argsort(descending=True)
    start, end = (blurred, x) if insert else (x, blurred)
    curve = []
    for point in range(points + 1):
        changed = torch.zeros(saliency.numel(), dtype=torch.bool, device=x.device)
        changed[order[: round(point / points * len(order))]] = True
        mixed = torch.where(changed.view(1, 1, *x.shape[-2:]), end, start)
        curve.append(segmenter.probabilities(mixed)[0, target][region].mean().item())
    return np.array(curve)


def randomised(segmenter: Segmenter, seed: int = 0) -> Segmenter:
    """The segmenter with new, untrained weights: a map that stays the same does not explain what was learned (Adebayo
    et al., *Sanity checks for saliency maps*, NeurIPS 2018)."""
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
        torch.manual_seed(seed)
        network = type(segmenter.network)(**segmenter.network.settings)
    network = network.to(next(segmenter.network.parameters()).device)
    return Segmenter(network.eval(), segmenter.classes)


def plot_curves(network: nn.Module, images: Tensor, count: int = 12) -> Figure:
    """The most important curves of each layer over the histogram of the inputs that each one sees."""
    seen = inputs(network, images)
    figure = Figure(figsize=(1.5 * count, 1.5 * len(seen)), layout="constrained")
    axes = figure.subplots(len(seen), count, squeeze=False)
    for row, (name, x) in zip(axes, seen.items()):
        layer = network.get_submodule(name)
        deviation = contributions(layer, x)[1]
        for axis, i in zip(row, deviation.norm(dim=0).argsort(descending=True).tolist()):
            low, high = torch.quantile(x[:, i], x.new_tensor([0.005, 0.995])).tolist()
            points = torch.linspace(low, high, 100, device=x.device)
            curves = layer.curves(points)
            curve = curves[i] if isinstance(layer, SharedKAN) else curves[deviation[:, i].argmax(), i]
            axis.hist(x[:, i].cpu().numpy(), 40, range=(low, high), color="0.85")
            axis.twinx().plot(points.cpu(), curve.cpu(), color="C0")
            axis.set_title(f"input {i}", fontsize=7)
            axis.tick_params(labelsize=5)
        row[0].set_ylabel(name, fontsize=6)
    return figure
