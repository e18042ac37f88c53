"""The bundled denoiser, the adapters, and the training."""

from __future__ import annotations

import copy
import math

import deepinv
import numpy as np
import pytest
import torch
from conftest import LAST_DIGITS, relative
from hypothesis import given, settings
from hypothesis import strategies as st

import denoisers


def psnr(x, reference):
    return -10 * math.log10((x - reference).square().mean().item())


@pytest.mark.parametrize("level", [1, 2, 5, 15, 25, 50, 100])
def test_never_harmful(level, brain, medical):
    noisy = brain + level / 255 * torch.randn_like(brain)
    assert psnr(medical(noisy, level / 255), brain) > psnr(noisy, brain)


def test_better_than_a_classical_denoiser(brain, medical):
    noisy = brain + 25 / 255 * torch.randn_like(brain)
    classical = max(psnr(deepinv.models.TVDenoiser()(noisy, s), brain) for s in (0.05, 0.1, 0.15, 0.2))
    assert psnr(medical(noisy, 25 / 255), brain) > classical + 0.5


def test_real_images(data, medical):
    """Within a reasonable distance of FFDNet's published weights on images that nobody trained on."""
    reference = data.parent / "reference" / "denoisers" / "ffdnet_gray.pth"
    peer = deepinv.models.FFDNet(residual_denoising=True, pretrained=str(reference)).eval()
    differences = []
    with torch.no_grad(), np.load(data / "natural" / "set12.npz") as images:
        for name in images.files[:5]:
            clean = torch.from_numpy(images[name]).float()[None, None] / 255
            noisy = clean + 25 / 255 * torch.randn_like(clean)
            differences.append(psnr(medical(noisy, 25 / 255), clean) - psnr(peer(noisy, 25 / 255), clean))
    assert np.mean(differences) > -1.0


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3), st.floats(0.01, 100), st.floats(0.001, 0.5))
def test_any_size_and_homogeneous(height, width, batch, factor, sigma):
    network = denoisers.ResidualUNet((4, 8, 8), half=False)
    torch.nn.init.normal_(network.tail.weight, std=0.1)
    x = torch.rand(batch, 1, height, width)
    with torch.no_grad():
        out = network(x, sigma)
        assert out.shape == x.shape
        assert torch.isfinite(out).all()
        assert torch.allclose(network(factor * x, factor * sigma), factor * out, rtol=1e-3, atol=1e-4 * factor)
        each = torch.full((batch,), sigma)
        assert torch.allclose(network(x, each), out, atol=1e-5)


def test_without_noise_nothing_breaks(brain, medical):
    assert torch.isfinite(medical(brain, 0.0)).all()
    assert medical(brain.double(), 0.1).dtype == torch.float64


def test_half_precision_costs_no_quality(brain):
    full, half = denoisers.load("medical"), denoisers.load("medical")
    full.half_trunk, half.half_trunk = False, True
    for level in (2, 25):
        noisy = brain + level / 255 * torch.randn_like(brain)
        assert abs(psnr(full(noisy, level / 255), brain) - psnr(half(noisy, level / 255), brain)) < 0.1


def test_cards_tell_where_weights_come_from():
    cards = denoisers.available()
    assert "medical" in [card["name"] for card in cards]
    for card in cards:
        assert {"architecture", "parameters", "sha256", "data", "cpu_hours", "seed", "licence"} <= set(card)


def test_loading_errors(tmp_path):
    with pytest.raises(ValueError, match=r"name: expected one of .*medical"):
        denoisers.load("nonsense")
    with pytest.raises(ValueError, match="deepinv/drunet"):
        denoisers.load("deepinv/nonsense")
    with pytest.raises(FileNotFoundError):
        denoisers.load(tmp_path / "missing.safetensors")
    with pytest.raises(FileNotFoundError, match="weights"):
        denoisers.load("deepinv/drunet", weights=tmp_path / "missing.pth")
    path = denoisers.save(denoisers.ResidualUNet((4, 8)), tmp_path / "small.safetensors", {"seed": 0})
    assert denoisers.load(path).card["seed"] == 0
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="damaged"):
        denoisers.load(path)


def test_downloads_fail_clearly(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(ConnectionError, match="could not be downloaded"):
        denoisers.load("deepinv/drunet")


def test_adapter_maps_the_range(brain):
    medical = denoisers.load("medical")
    medical.half_trunk = False  # so that the rounding of the images does not grow
    noisy = brain + 0.1 * torch.randn_like(brain)
    adapted = denoisers.adapt(medical, scale=2000.0, offset=-1000.0)
    out = adapted(2000 * noisy - 1000, 200.0)
    assert torch.allclose((out + 1000) / 2000, medical(noisy, 0.1), atol=1e-5)


@pytest.mark.parametrize("sigma", [5 / 255, 15 / 255, 50 / 255])
def test_noise_level_of_an_image_is_found(brain, sigma):
    noise = torch.randn(2, *brain.shape[1:], generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([1.0, 2.0]) * sigma
    found = denoisers.estimate_noise(brain + levels.view(-1, 1, 1, 1) * noise)
    assert (found > 0.95 * levels).all()
    assert (found < 1.05 * levels + 1.5 / 255).all()
    assert denoisers.estimate_noise(1000 * noise[:1]).item() == pytest.approx(1000, rel=0.03)
    outside = brain + 0.1 * noise[:1]
    outside[..., :30] = 0
    assert denoisers.estimate_noise(outside).item() == pytest.approx(0.1, rel=0.1)
    whole = (255 * (brain + levels.view(-1, 1, 1, 1) * noise)).clamp(0, 255)
    assert torch.allclose(denoisers.estimate_noise(whole.byte()), denoisers.estimate_noise(whole), rtol=0.2, atol=1)
    with pytest.raises(ValueError, match="x: expected real images"):
        denoisers.estimate_noise(noise[0])


def test_noise_beside_padding_and_masks():
    """Pixels that nothing was measured at do not count: a disk of CT in padding, a brain in a mask."""
    u = torch.linspace(-1, 1, 192)
    inside = u[:, None] ** 2 + u**2 < 0.8
    smooth = 100 * torch.cos(3 * u[:, None]) * torch.sin(2 * u) + 50
    noise = 40 * torch.randn(192, 192, generator=torch.Generator().manual_seed(0))
    for padding in (-3024.0, 0.0, 7.0):
        found = denoisers.estimate_noise(torch.where(inside, smooth + noise, padding)[None, None])
        assert found.item() == pytest.approx(40, rel=0.04)
    pieces = 1.0 * inside[None, None] + (u > 0)
    assert denoisers.estimate_noise(pieces + 3).item() == 0  # flat, and free of noise


@pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf"), torch.tensor([0.1, -0.1])])
@pytest.mark.parametrize("name", ["medical", "gradient-step", "continuous", "tv", "nlm"])
def test_levels_that_are_none(name, sigma):
    with pytest.raises(ValueError, match="sigma: expected finite noise levels"):
        denoisers.load(name)(torch.rand(2, 1, 16, 16), sigma)


@pytest.mark.parametrize("name", ["medical", "gradient-step", "continuous"])
@pytest.mark.parametrize("shape", [(16, 16), (1, 2, 16, 16), (0, 1, 16, 16), (1, 1, 0, 16)])
def test_shapes_that_are_no_images(name, shape):
    with pytest.raises(ValueError, match="x: expected real one-channel images"):
        denoisers.load(name)(torch.zeros(shape), 0.1)


@pytest.mark.parametrize("name", [card["name"] for card in denoisers.available()])
def test_double_precision_and_integers(name):
    x = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    network = denoisers.load(name)
    integers = (255 * x).byte()
    torch.testing.assert_close(network(integers, 20.0), network(integers.float(), 20.0))
    single = network(x, 0.1)
    double = denoisers.load(name).double()(x.double(), 0.1)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, atol=5e-3, rtol=0)  # the trunk runs in bfloat16


def test_adapters_of_integers_and_of_other_precision(medical):
    x = (255 * torch.rand(2, 1, 40, 37, generator=torch.Generator().manual_seed(0))).byte()
    expected = denoisers.adapt(medical, scale=300.0, offset=-7.0)(x, 10.0)
    found = denoisers.adapt(medical, scale=torch.full((2,), 300.0), offset=torch.full((2,), -7.0))(x, 10.0)
    torch.testing.assert_close(found, expected)
    wrapped = denoisers.adapt(denoisers.load("medical")).double()
    assert wrapped(torch.rand(1, 2, 32, 32).double(), 0.1).dtype == torch.float64
    with pytest.raises(ValueError, match="sigma: expected one or 2 values for 2 images, got 3"):
        denoisers.adapt(medical)(x, torch.ones(3))
    with pytest.raises(ValueError, match="scale: expected one or 2 values"):
        denoisers.adapt(medical, scale=torch.ones(3))(x, 1.0)
    with pytest.raises(ValueError, match="offset: expected finite"):
        denoisers.adapt(medical, offset=float("nan"))


def test_a_failed_probe_is_not_remembered():
    """An image that is too small for a network of three channels tells nothing about the next one."""

    def colours(x, sigma):
        if x.shape[1] != 3 or min(x.shape[-2:]) < 8:
            raise RuntimeError("too small")
        return x

    adapted = denoisers.adapt(colours)
    with pytest.raises(RuntimeError, match="too small"):
        adapted(torch.rand(1, 3, 4, 4), 0.1)
    assert adapted(torch.rand(1, 3, 16, 16), 0.1).shape == (1, 3, 16, 16)


def test_weights_that_could_not_be_loaded_are_not_saved(tmp_path, medical):
    with pytest.raises(ValueError, match=r"path: expected a name that ends in .safetensors"):
        denoisers.save(medical, tmp_path / "a.pt")
    with pytest.raises(TypeError, match="network: expected one with its keyword arguments in settings"):
        denoisers.save(torch.nn.Conv2d(1, 1, 3), tmp_path / "a.safetensors")
    path = denoisers.save(medical, tmp_path / "a.safetensors")
    card = path.with_suffix(".json").read_text()
    for wrong in (card.replace("ResidualUNet", "Other"), card.replace("32", "16"), card[:20]):
        path.with_suffix(".json").write_text(wrong)
        with pytest.raises(ValueError, match="weights: "):
            denoisers.load(path)


def test_adapter_takes_volumes_slice_by_slice(medical):
    volume = torch.rand(2, 1, 5, 20, 24)
    sigma = torch.tensor([0.05, 0.2])
    cut = denoisers.adapt(medical, axes=(1,), batch=7)(volume, sigma)
    for k in (0, 19):
        assert torch.allclose(cut[:, :, :, k], medical(volume[:, :, :, k], sigma), atol=1e-4)
    each = [denoisers.adapt(medical, axes=(axis,))(volume, sigma) for axis in (0, 1, 2)]
    assert torch.allclose(denoisers.adapt(medical)(volume, sigma), sum(each) / 3, atol=1e-5)
    pair = volume.repeat(1, 2, 1, 1, 1)
    both = denoisers.adapt(medical, axes=(1,))(pair, sigma)
    assert torch.allclose(both, cut.repeat(1, 2, 1, 1, 1), atol=1e-4)


def test_adapter_blends_tiles(brain, medical):
    noisy = brain + 0.1 * torch.randn(brain.shape, generator=torch.Generator().manual_seed(0))
    whole = medical(noisy, 0.1)
    for tile in (96, 101):
        tiled = denoisers.adapt(medical, tile=tile)(noisy, 0.1)
        assert (tiled - whole).norm() < 0.01 * whole.norm()
    assert torch.equal(denoisers.adapt(medical, tile=1000)(noisy, 0.1), whole)


def test_adapter_takes_one_range_for_each_volume(medical):
    volume = torch.rand(2, 1, 5, 20, 24)
    scale, offset = torch.tensor([1.0, 50.0]).view(2, 1, 1, 1), torch.tensor([0.0, -7.0]).view(2, 1, 1, 1)
    adapted = denoisers.adapt(medical, scale=scale, offset=offset, axes=(0,))
    unit = denoisers.adapt(medical, axes=(0,))(volume, 0.1)
    wide = adapted(scale[..., None] * volume + offset[..., None], 0.1 * scale.flatten())
    assert torch.allclose((wide - offset[..., None]) / scale[..., None], unit, atol=1e-2)


def test_adapter_sees_each_image_anew(medical):
    """What it found out about one image's channels does not hold for the next."""
    adapted = denoisers.adapt(medical)
    assert adapted(torch.rand(1, 1, 16, 16), 0.1).shape == (1, 1, 16, 16)
    assert adapted(torch.rand(1, 2, 16, 16), 0.1).shape == (1, 2, 16, 16)
    assert adapted((255 * torch.rand(1, 1, 16, 16)).byte(), 10.0).is_floating_point()
    with pytest.raises(TypeError, match="x: expected real images"):
        adapted(torch.rand(1, 1, 16, 16) + 0j, 0.1)
    with pytest.raises(ValueError, match="scale: expected positive"):
        denoisers.adapt(medical, scale=0.0)


def test_ffdnet_takes_odd_sizes(reference):
    """deepinv's network with the published weights, whose golden output is at hand."""
    ffdnet = denoisers.load("deepinv/ffdnet", weights=reference / "denoisers" / "ffdnet_gray.pth")
    noisy = 0.5 + 0.1 * torch.randn(1, 1, 37, 53, generator=torch.Generator().manual_seed(0))
    assert (ffdnet(noisy, 0.1) - 0.5).std() < 0.03
    with pytest.raises(ValueError, match="weights: expected a state dict of deepinv's drunet"):
        denoisers.load("deepinv/drunet", weights=reference / "denoisers" / "ffdnet_gray.pth")


@pytest.mark.parametrize("wrong", [{"axes": ()}, {"axes": (3,)}, {"batch": 0}, {"tile": 0}, {"overlap": 1.0}])
def test_adapter_refuses_what_cannot_be(medical, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*: expected"):
        denoisers.adapt(medical, **wrong)


def test_adapter_takes_complex_images(brain, medical):
    phase = torch.polar(torch.ones(1, 96, 80), torch.linspace(-2, 2, 80).expand(1, 96, 80))
    clean = torch.cat([brain * phase.real, brain * phase.imag], 1)
    noisy = clean + 0.1 * torch.randn_like(clean)
    blind = denoisers.adapt(medical)(noisy, 0.1)
    guided = denoisers.adapt(medical, phase=phase)(noisy, 0.1)
    assert psnr(blind, clean) > psnr(noisy, clean) + 4
    assert psnr(guided, clean) > psnr(blind, clean)
    with pytest.raises(ValueError, match="denoiser: expected it to return"):
        denoisers.adapt(lambda x, sigma: x[:, :, 1:], channels=True)(noisy, 0.1)


def test_samples_of_a_known_prior():
    """Normal pixels around 0.3, whose denoiser is known."""
    drawn = denoisers.sample(lambda z, s: 0.3 + (z - 0.3) / (1 + (s / 0.2) ** 2), (8, 1, 64, 64), steps=100, seed=0)
    assert drawn.mean().item() == pytest.approx(0.3, abs=0.01)
    assert drawn.std().item() == pytest.approx(0.2, rel=0.05)


def test_samples_of_the_bundled_prior_are_seeded(medical):
    first, again = (denoisers.sample(medical, (2, 1, 32, 40), steps=4, seed=1) for _ in range(2))
    assert first.shape == (2, 1, 32, 40)
    assert relative(again, first) < LAST_DIGITS
    with pytest.raises(ValueError, match="steps: expected a whole number of at least 1"):
        denoisers.sample(medical, steps=0)
    with pytest.raises(ValueError, match="first, last: expected first >= last > 0"):
        denoisers.sample(medical, first=0.1, last=0.2)


def test_weights_in_another_precision(brain, medical):
    """As any module, networks can be cast."""
    network = copy.deepcopy(medical)
    wanted = network(brain, 0.1)
    assert relative(network.half()(brain, 0.1), wanted) < 1e-2
    assert relative(network.double()(brain, 0.1), wanted) < 1e-2
