"""Explanations against what is known of the networks, and exported models against their originals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import segmentation
from pnp import demo
from segmentation import UKAN, ImplicitUKAN2, Segmenter, explain
from segmentation.export import to_onnx
from segmentation.kan import KANLinear, SharedKAN

NETWORKS = {
    "ukan": lambda: UKAN(3, embed_dims=(16, 24, 32)),
    "light": lambda: ImplicitUKAN2(3, widths=(8, 8, 12, 12, 16), curves=(False, False, True, True, False), steps=2),
    "paper": lambda: ImplicitUKAN2(3, variant="paper", widths=(4, 8, 8, 8, 12, 12)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_importance_and_pruning(name):
    network, images = NETWORKS[name]().eval(), torch.randn(2, 1, 64, 64)
    layer_name, layer = next(
        (n, part) for n, part in network.named_modules() if isinstance(part, (KANLinear, SharedKAN))
    )
    with torch.no_grad():  # the layer's third input counts for nothing
        if isinstance(layer, KANLinear):
            layer.base_weight[:, 2], layer.spline_weight[:, 2] = 0, 0
        else:
            layer.base_weight[2], layer.spline_weight[2] = 0, 0
        assert explain.importance(network, images)[layer_name].argmin() == 2
        torch.testing.assert_close(explain.prune(network, images, 1.0)(images), network(images), atol=1e-5, rtol=1e-4)
        few = explain.prune(network, images, 0.5)
        pruned = few.get_submodule(layer_name)
        x = explain.inputs(network, images)[layer_name]
        assert 2 not in pruned.kept
        torch.testing.assert_close(pruned(x).mean(0), layer(x).mean(0), atol=1e-4, rtol=1e-4)
        assert sum(p.numel() for p in few.parameters()) < sum(p.numel() for p in network.parameters())
    with pytest.raises(ValueError, match="keep: expected"):
        explain.prune(network, images, 0)


def test_pruning_saves_the_work():
    layer, x = SharedKAN(32, 16), torch.randn(100, 32)
    network = torch.nn.Sequential(layer)
    smaller = explain.prune(network, x, 0.25)
    flops = []
    for part in (network, smaller):
        with FlopCounterMode(display=False) as counter:
            part(x)
        flops.append(counter.get_total_flops())
    assert flops[1] == flops[0] // 4


@pytest.mark.parametrize("kind", [KANLinear, SharedKAN])
def test_formulas_are_found(kind):
    """Splines with their Greville points as coefficients are straight lines."""
    layer = kind(3, 2, grid_size=5, grid_range=(-4, 4))
    middles = torch.arange(-1, 7) * 8 / 5 - 4
    with torch.no_grad():
        layer.base_weight.zero_()
        layer.spline_weight.copy_(middles.expand_as(layer.spline_weight))
        if kind is KANLinear:
            layer.spline_scaler.copy_(torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    x = torch.randn(500, 3).clamp(-3.9, 3.9)
    found = explain.Symbolic(layer, x)
    assert {name for row in found.names for name in row} == {"u"}
    assert found.fit.min() > 0.999
    torch.testing.assert_close(found(x), layer(x), atol=1e-3, rtol=1e-3)


def test_formulas_replace_curves():
    network, images = NETWORKS["light"]().eval(), torch.randn(2, 1, 64, 64)
    changed = explain.symbolic(network, images)
    assert not any(isinstance(part, SharedKAN) for part in changed.modules())
    with torch.no_grad():
        assert (changed(images) - network(images)).norm() < 0.2 * network(images).norm()
    with pytest.raises(ValueError, match="network: expected one with layers of curves"):
        explain.symbolic(segmentation.UNet(2), images)


def test_finer_steps_settle():
    network, images = NETWORKS["light"]().eval(), torch.randn(1, 1, 64, 64)
    changes = []
    for steps in (1, 4, 16):
        network.solve_with(steps=steps)
        changes.append(explain.unsettled(network, images))
    assert changes[0].shape == (1, 64, 64)
    assert changes[0].mean() > 4 * changes[1].mean() > 16 * changes[2].mean() > 0
    with pytest.raises(ValueError, match="network: expected equations"):
        explain.unsettled(segmentation.UNet(2), images)


def test_attribution_is_faithful():
    """Blurring what the map marks hurts more than blurring random pixels or what an untrained network's map marks."""
    segmenter = segmentation.load("brain-tissue", model="unet")
    image, _ = demo.brain()
    image = image[1:2, :, 24:216, 12:188]
    before, areas = torch.get_rng_state(), {}
    untrained = explain.randomised(segmenter)
    assert torch.equal(torch.get_rng_state(), before)
    for name, model in (("trained", segmenter), ("untrained", untrained)):
        saliency = explain.attribution(model, image, 3)
        areas[name] = explain.deletion(segmenter, image, saliency, 3).mean()
        filling = explain.deletion(segmenter, image, saliency, 3, insert=True).mean()
        areas[name + " filled"] = filling
    chance = explain.deletion(segmenter, image, torch.rand(1, *image.shape[-2:]), 3)
    assert chance[0] > 0.8
    assert areas["trained"] < min(areas["untrained"], chance.mean()) - 0.02
    assert areas["trained filled"] > areas["untrained filled"]
    coarse = explain.attribution(segmenter, image, 3, "grad-cam")
    assert coarse.shape == image[:, 0].shape
    assert coarse.max() > 0
    with pytest.raises(ValueError, match="target: expected a class from 0 to"):
        explain.attribution(segmenter, image, 7)
    with pytest.raises(ValueError, match="method: expected"):
        explain.attribution(segmenter, image, 3, "guess")
    with pytest.raises(ValueError, match="target: expected a class that is found"):
        explain.deletion(segmenter, 0 * image + 1, coarse, 1)


def test_coarse_maps_lie_where_the_object_is():
    """Also in images whose sides are no multiples of a coarse pixel, to which networks add zeros."""
    segmenter = segmentation.load("brain-tissue", model="unet")
    image, _ = demo.brain()
    odd = image[1:2, :, 24:209, 12:177]
    even = torch.nn.functional.pad(odd, (0, -165 % 32, 0, -185 % 32))
    coarse = [explain.attribution(segmenter, x, 3, "grad-cam")[0, :185, :165] for x in (odd, even)]
    torch.testing.assert_close(coarse[0] / coarse[0].max(), coarse[1] / coarse[1].max(), atol=0.05, rtol=0)


def test_curves_are_drawn(tmp_path):
    figure = explain.plot_curves(NETWORKS["light"]().eval(), torch.randn(2, 1, 64, 64), count=3)
    figure.savefig(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", [*NETWORKS, "unet"])
def test_exported_model_is_the_network(tmp_path, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    network = segmentation.UNet(3, widths=(4, 8, 8)) if name == "unet" else NETWORKS[name]()
    segmenter = Segmenter(network.eval(), ("a", "b", "c"), temperature=1.7)
    path = to_onnx(segmenter, tmp_path / "model.onnx", (64, 64))
    session = onnxruntime.InferenceSession(path)
    for batch in (1, 3):
        images = 50 * torch.rand(batch, 1, 64, 64)
        (found,) = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(found, segmenter.probabilities(images).numpy(), atol=1e-4)


def test_solvers_that_cannot_be_exported(tmp_path):
    segmenter = Segmenter(segmentation.ImplicitUKAN2(2, widths=(8, 8, 12, 12, 16), solver="rk4").eval(), ("a", "b"))
    with pytest.raises(ValueError, match="segmenter: expected equations solved by euler or verlet"):
        to_onnx(segmenter, tmp_path / "model.onnx")
