"""Training of denoisers: learning, resuming, noisy images, non-expansiveness, several processes, and its data."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pydicom.data
import pytest
import torch
from PIL import Image

import denoisers
from denoisers.convergent import expansion
from denoisers.data import Patches, Source, parse_source, read_images, rescaled
from denoisers.noise import coloured
from denoisers.training import _warmup_cosine


def psnr(a, b):
    return -10 * math.log10((a - b).square().mean().item())


def sources(count=6):
    rng = np.random.default_rng(0)
    images = [np.kron(rng.random((8, 8)), np.ones((8, 8))) for _ in range(count)]
    volume = np.kron(rng.random((6, 6, 6)), np.ones((6, 6, 6))) * 2000 - 1000
    return {"flat": Source(images, 0.7), "ct": Source([volume], 0.3, hounsfield=True)}


def test_training_learns_and_resumes_to_the_same_weights(tmp_path):
    options = {"steps": 12, "batch": 4, "patch": 32, "warmup": 2, "progress": False, "validate_every": 6}
    small = lambda: denoisers.ResidualUNet((4, 8), half=False)  # noqa: E731
    torch.manual_seed(0)
    whole = denoisers.train(sources(), tmp_path / "whole", network=small(), **options)

    class Stop(Exception):
        pass

    draws = Patches.__getitem__

    def interrupted(self, number):
        if number == 7:
            raise Stop
        return draws(self, number)

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Patches, "__getitem__", interrupted)
        with pytest.raises(Stop):
            denoisers.train(sources(), tmp_path / "parts", network=small(), save_minutes=0, **options)
    torch.manual_seed(1)
    parts = denoisers.train(sources(), tmp_path / "parts", network=small(), **options)
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values()):
        assert torch.equal(a, b), name
    card = json.loads((tmp_path / "parts" / "weights.json").read_text())
    assert card["steps"] == 12
    assert set(card["data"]) == {"flat", "ct"}
    assert len((tmp_path / "parts" / "log.csv").read_text().splitlines()) == 3
    with pytest.raises(ValueError, match=r"out: .* other arguments \(steps 12, now 20\)"):
        denoisers.train(sources(), tmp_path / "parts", network=small(), **options | {"steps": 20})
    loaded = denoisers.load(tmp_path / "parts" / "weights.safetensors")
    x = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        assert torch.allclose(loaded(x, 0.1), parts(x, 0.1), atol=1e-2)


def test_training_improves_the_loss(tmp_path):
    network = denoisers.train(
        sources(20),
        tmp_path,
        network=denoisers.ResidualUNet((8, 16)),
        steps=150,
        batch=8,
        patch=32,
        warmup=10,
        coloured_share=0.5,
        progress=False,
    )
    clean = torch.from_numpy(sources(20)["flat"].held_out[0]).float()[None, None]
    noisy = clean + 0.15 * torch.randn_like(clean)
    with torch.no_grad():
        assert psnr(network(noisy, 0.15), clean) > psnr(noisy, clean) + 3


def test_learning_without_clean_images(tmp_path):
    rng = np.random.default_rng(1)
    clean = sources(20)["flat"].images
    noisy = [image + 0.1 * rng.standard_normal(image.shape) for image in clean]
    options = {"steps": 150, "batch": 8, "patch": 32, "warmup": 10, "progress": False}
    networks = {}
    for name, source in {"clean": Source(clean), "noisy": Source(noisy, noisy=True)}.items():
        torch.manual_seed(0)
        network = denoisers.ResidualUNet((8, 16))
        networks[name] = denoisers.train({"flat": source}, tmp_path / name, network=network, **options)
    x = torch.from_numpy(sources(20)["flat"].held_out[0]).float()[None, None]
    y = x + 0.15 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = {name: psnr(network(y, 0.15), x) for name, network in networks.items()}
    assert scores["noisy"] > psnr(y, x) + 3
    assert scores["noisy"] > scores["clean"] - 1


def test_noisy_images_know_their_noise():
    rng = np.random.default_rng(0)
    image = 3 * np.kron(rng.random((4, 4)), np.ones((24, 24)))
    source = Source([image + 0.3 * rng.standard_normal(image.shape)], noisy=True)
    top = np.percentile(image, 99.9)
    assert source.noise[0] == pytest.approx(0.3 / top, rel=0.2)
    assert source.validation_slices() == []
    _, own, _, sigma = Patches({"a": source}, size=32, batch=64)[0]
    assert (sigma >= 1.0999 * own).all()
    assert (own > 0).all()
    with pytest.raises(ValueError, match="complex, noisy"):
        Source([image], complex=True, noisy=True)


def test_what_is_no_source(tmp_path):
    with pytest.raises(TypeError, match="images: expected a list of NumPy arrays, got ndarray"):
        Source(np.ones((2, 8, 8)))
    with pytest.raises(TypeError, match="images: expected a list of NumPy arrays, got a list with Tensor"):
        Source([torch.ones(8, 8)])
    with pytest.raises(TypeError, match="sources: expected a dictionary from names to Source, got list"):
        denoisers.train([np.ones((8, 8))], tmp_path)
    with pytest.raises(TypeError, match="sources: expected a Source of images under each name, got ndarray"):
        denoisers.train({"mine": np.ones((8, 8))}, tmp_path)


def test_warm_restarts():
    rate = _warmup_cosine(10, 100, 3)
    rates = [rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert [rates[k] for k in (25, 50, 75)] == [1.0, 1.0, 1.0]
    assert all(rates[k] < 0.02 for k in (24, 49, 74, 99))


def test_expansion_of_linear_maps():
    matrix = torch.randn(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.rand(2, 1, 4, 5, dtype=torch.float64)
    found = expansion(lambda x, sigma: (x.flatten(1) @ matrix.T).view_as(x), x, torch.ones(2), iterations=300)
    identity = torch.eye(20, dtype=torch.float64)
    expected = torch.linalg.matrix_norm(2 * matrix - identity, 2) ** 2 - 1
    assert torch.allclose(found, expected.expand(2), rtol=1e-6)
    half = expansion(lambda x, sigma: 0.3 * x, x, torch.ones(2))
    assert torch.equal(half, torch.zeros(2, dtype=torch.float64))


def test_training_towards_non_expansiveness(tmp_path):
    options = {"steps": 60, "batch": 8, "patch": 32, "warmup": 5, "progress": False, "learning_rate": 1e-2}
    constants = []
    for weight in (0.0, 3.0):
        torch.manual_seed(0)
        network = denoisers.ResidualUNet((8, 16), half=False)
        torch.nn.init.normal_(network.tail.weight, std=0.5)
        network = denoisers.train(sources(), tmp_path / str(weight), network=network, nonexpansive=weight, **options)
        x = torch.from_numpy(sources()["flat"].held_out[0]).float()[None, None]
        constants.append(denoisers.lipschitz(network, x, 0.1, of="reflection").item())
    assert constants[1] < constants[0]
    assert constants[1] < 1.3


PROCESSES = """
import sys, torch
import numpy as np
import denoisers
from denoisers import processes
from denoisers.data import Patches, Source

rank, count = processes.join()
mean = torch.tensor([1.0 + rank, 4.0 * rank])
processes.average([mean])
assert mean.tolist() == [1.5, 2.0], mean
assert processes.any_of(rank == 1) and processes.collect(rank) == [0, 1]

def run(name, draw=Patches.__getitem__):
    Patches.__getitem__ = draw
    torch.manual_seed(0)
    images = [np.kron(np.random.default_rng(k).random((8, 8)), np.ones((8, 8))) for k in range(4)]
    options = {"steps": 6, "batch": 4, "patch": 32, "warmup": 2, "progress": False, "save_minutes": 0}
    network = denoisers.train({"flat": Source(images)}, sys.argv[1] + name,
                              network=denoisers.ResidualUNet((4, 8), half=False), **options)
    return torch.cat([p.flatten() for p in network.parameters()])

whole = Patches.__getitem__
def interrupted(self, number):
    if number == 3:
        raise KeyboardInterrupt
    return whole(self, number)

weights = run("whole")
assert torch.equal(*processes.collect(weights))
first, second = processes.collect(Patches({"a": Source([np.eye(64)])}, 16, 2, seed=(0, rank))[0][0])
assert not torch.equal(first, second)
try:
    run("parts", interrupted)
except KeyboardInterrupt:
    pass
assert torch.equal(run("parts", whole), weights)
"""


def test_two_processes(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, str(script), f"{tmp_path}/"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "whole" / "weights.safetensors").exists()


def test_reading_images(tmp_path):
    array = np.random.default_rng(0).random((5, 20, 24)).astype(np.float32)
    np.savez(tmp_path / "a.npz", images=array, masks=array > 0.5)
    assert len(read_images(tmp_path / "a.npz")) == 5
    np.save(tmp_path / "b.npy", array[0])
    assert len(read_images(tmp_path)) == 6
    with pytest.raises(FileNotFoundError):
        read_images(tmp_path / "c.npy")
    (tmp_path / "d.txt").write_text("no image")
    with pytest.raises(ValueError, match="expected npy, npz"):
        read_images(tmp_path / "d.txt")
    name, source = parse_source(f"mine={tmp_path / 'a.npz'}:0.3:complex")
    assert (name, source.weight, source.complex, len(source.images), len(source.held_out)) == ("mine", 0.3, True, 4, 1)
    with pytest.raises(ValueError, match="source: expected name=path"):
        parse_source("nonsense")
    with pytest.raises(ValueError, match="sources: expected at least one"):
        Patches({})


def test_reading_formats_of_the_field(tmp_path):
    """Whatever the file, its own values: no more than the precision of the format is lost."""
    image = np.random.default_rng(0).integers(0, 4000, (24, 20)).astype(np.uint16)
    Image.fromarray(image).save(tmp_path / "sixteen.png")
    Image.fromarray(image.astype(np.float32) - 1000).save(tmp_path / "float.tif")
    colours = np.stack([image // 16] * 3, -1).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "colours.png")
    volume = np.random.default_rng(1).random((6, 7, 8, 3)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume[..., 0], np.eye(4)), tmp_path / "volume.nii.gz")
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "series.nii")
    assert np.array_equal(read_images(tmp_path / "sixteen.png")[0], image)
    assert np.array_equal(read_images(tmp_path / "float.tif")[0], image.astype(np.float32) - 1000)
    assert np.abs(read_images(tmp_path / "colours.png")[0] - image // 16).max() <= 1
    assert np.array_equal(read_images(tmp_path / "volume.nii.gz")[0], volume[..., 0])
    assert [v.shape for v in read_images(tmp_path / "series.nii")] == [(6, 7, 8)] * 3
    slices = pydicom.data.get_testdata_file("CT_small.dcm")
    dataset = pydicom.dcmread(slices)
    hounsfield = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    for name in ("CT.DCM", "IM000001"):
        (tmp_path / name).write_bytes(Path(slices).read_bytes())
        assert np.array_equal(read_images(tmp_path / name)[0], hounsfield)
    assert len(read_images(tmp_path)) == 9


@pytest.mark.parametrize(
    ("shape", "count"),
    [((20, 24), 1), ((5, 20, 24), 5), ((5, 1, 20, 24), 5), ((5, 20, 24, 1), 5), ((5, 20, 24, 3), 5), ((20, 24, 3), 1)],
)
def test_reading_arrays(tmp_path, shape, count):
    np.save(tmp_path / "a.npy", np.ones(shape))
    assert [image.shape for image in read_images(tmp_path / "a.npy")] == [(20, 24)] * count
    np.savez(tmp_path / "b.npz", images=np.ones(shape), labels=np.ones(shape, int), ages=np.arange(5))
    assert len(read_images(tmp_path / "b.npz")) == count


def test_what_is_no_image_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 3, 4, 5, 6)))
    with pytest.raises(ValueError, match="path: expected real images"):
        read_images(tmp_path / "a.npy")
    broken = np.ones((20, 24))
    broken[3, 4] = np.nan
    with pytest.raises(ValueError, match=r"images: expected .* 1 values that are not finite"):
        Source([broken])
    np.save(tmp_path / "b.npy", np.ones((20, 24)))
    with pytest.raises(ValueError, match="source: expected a weight, hu"):
        parse_source(f"mine={tmp_path / 'b.npy'}:huu")
    with pytest.raises(ValueError, match="steps: expected at least 1"):
        denoisers.train(sources(), tmp_path / "out", steps=0)
    with pytest.raises(TypeError, match="network: expected"):
        denoisers.train(sources(), tmp_path / "out", network=torch.nn.Conv2d(1, 1, 1))


def test_thin_slabs_are_cut_along_their_short_axis():
    slab = np.random.default_rng(0).random((2, 64, 64)).astype(np.float32)
    patches = Patches({"slab": Source([slab], noisy=True)}, size=32, batch=8)
    assert patches.sources[0].noise[0] > 0.1
    assert patches[0][0].std((1, 2, 3)).min() > 0.1


def test_command_line(tmp_path):
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((4, 40, 40)))

    def card(out, *options):
        command = [
            sys.executable,
            "-m",
            "denoisers.train",
            f"mine={tmp_path / 'images.npy'}:1",
            "--out",
            tmp_path / out,
        ]
        subprocess.run([*command, "--steps", "2", "--batch", "2", "--patch", "32", *options], check=True)
        return denoisers.load(tmp_path / out / "weights.safetensors").card

    assert card("new", "--widths", "4", "8")["steps"] == 2
    tuned, medical = card("tuned", "--from", "medical"), denoisers.load("medical").card
    assert (tuned["from"], tuned["licence"]) == ("medical", medical["licence"])
    assert tuned["steps"] == medical["steps"] + 2


def test_patches_keep_their_range():
    patches, own, kinds, sigma = Patches(sources(), size=32, batch=64)[0]
    assert not own.any()
    assert patches.shape == (64, 1, 32, 32)
    assert patches.min() > -0.5
    assert patches.max() < 1.6
    assert set(kinds.tolist()) == {0, 1}
    assert 0 < sigma.min() < sigma.max() <= 1
    assert 1 < Patches(sources(), size=32, batch=64, sigma_max=5)[0][-1].max() <= 5


def test_coloured_noise_has_its_power_where_it_says():
    """Standard deviation 1, and power spectra that differ from image to image but not on the whole."""
    generator = torch.Generator().manual_seed(0)
    noise = coloured(torch.randn(400, 1, 32, 32, generator=generator), 1.0, generator)
    torch.testing.assert_close(noise.square().mean((1, 2, 3)), torch.ones(400))
    power = torch.fft.fft2(noise).abs().square()[:, 0]
    low, high = power[:, :4, :4].mean((1, 2)), power[:, 12:20, 12:20].mean((1, 2))
    ratio = (low / high).log()
    assert ratio.std() > 0.8
    assert ratio.mean().abs() < 0.3


def test_levels_stay_below_the_highest():
    patches = Patches({"a": Source([np.random.default_rng(0).random((40, 40))] * 3)}, size=32, batch=64, sigma_max=0.05)
    assert max(patches[k][-1].max() for k in range(4)) <= 0.05


def test_noisy_images_leave_low_levels_as_they_were(tmp_path, medical):
    """Tuned on noisy images only, the network does not unlearn what to do with less noise."""
    rng = np.random.default_rng(0)
    clean = [np.kron(rng.random((8, 8)), np.ones((8, 8))).astype(np.float32) for _ in range(6)]
    noisy = [image + 0.05 * rng.standard_normal(image.shape) for image in clean]
    options = {"steps": 60, "batch": 8, "patch": 48, "learning_rate": 1e-3, "warmup": 5, "average": 0.9}
    source = {"noisy": Source(noisy, noisy=True)}
    tuned = denoisers.train(source, tmp_path, network=copy.deepcopy(medical), progress=False, **options)
    x = torch.from_numpy(np.stack(clean))[:, None]
    y = x + 2 / 255 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert psnr(tuned(y, 2 / 255), x) > psnr(medical(y, 2 / 255), x) - 0.5
    y = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert psnr(tuned(y, 0.1), x) > psnr(medical(y, 0.1), x)


def test_lone_volumes_are_validated_where_they_show_something():
    volume = np.zeros((40, 32, 32), np.float32)
    volume[8:32] = np.random.default_rng(0).random((24, 32, 32))
    source = Source([volume])
    assert len(source.held_out) == 2
    assert all(image.std() > 0.1 for image in source.held_out)
    assert len(source.images[0]) == 28  # of 32 with something before them, less a tenth of the 24


def test_folders_hold_more_than_images(tmp_path):
    image = np.full((12, 12), 100, np.uint8)
    for name in ("scan.png", "scan_seg.png", ".hidden.png", "labelsTr/scan.png", "sub/other.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / name)
    Image.fromarray(image).save(tmp_path / "masked.png")
    assert len(read_images(tmp_path)) == 2
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read"):
        read_images(tmp_path)
    arrays = {"images": np.ones((3, 12, 12)), "affine": np.eye(4), "gt": np.ones((3, 12, 12)), "names": np.array([{}])}
    np.savez(tmp_path / "a.npz", **arrays)
    assert len(read_images(tmp_path / "a.npz")) == 3
    np.savez(tmp_path / "b.npz", images=np.ones((3, 12, 12), complex))
    with pytest.raises(ValueError, match="got complex ones in images"):
        read_images(tmp_path / "b.npz")


def test_units_of_frames(tmp_path):
    """Slope and intercept of several frames are those of all or of each."""
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    expected = rescaled(dataset)
    values = pydicom.Dataset()
    values.RescaleSlope, values.RescaleIntercept = dataset.RescaleSlope, dataset.RescaleIntercept
    group = pydicom.Dataset()
    group.PixelValueTransformationSequence = [values]
    del dataset.RescaleSlope, dataset.RescaleIntercept
    dataset.SharedFunctionalGroupsSequence = [group]
    np.testing.assert_array_equal(rescaled(dataset), expected)
    del dataset.SharedFunctionalGroupsSequence
    dataset.PerFrameFunctionalGroupsSequence = [group]
    np.testing.assert_array_equal(rescaled(dataset)[0], expected)


def test_hounsfield_units_without_saying_so(tmp_path):
    np.save(tmp_path / "ct.npy", np.linspace(-1024, 2000, 24 * 32).reshape(24, 32))
    with pytest.warns(UserWarning, match="append ':hu'"):
        parse_source(f"ct={tmp_path / 'ct.npy'}")


def test_a_run_goes_on_from_its_own_weights_only(tmp_path):
    options = {"steps": 4, "batch": 2, "patch": 32, "progress": False}
    source = {"a": Source([np.random.default_rng(0).random((40, 40))])}
    denoisers.train(source, tmp_path / "one", network=denoisers.ResidualUNet((8, 8)), **options)
    denoisers.train(source, tmp_path / "two", network=denoisers.ResidualUNet((8, 8)), seed=1, **options)
    first, second = (denoisers.load(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    denoisers.train(source, tmp_path / "on", network=first, **options)
    with pytest.raises(ValueError, match=r"out: .* holds a run with other arguments \(from weights"):
        denoisers.train(source, tmp_path / "on", network=second, **options)
    for name, wrong in {"average": 1.5, "squared_share": 2, "nonexpansive": -1, "seed": -1, "learning_rate": 0}.items():
        with pytest.raises(ValueError, match=f"{name}: expected"):
            denoisers.train(source, tmp_path / "no", **options, **{name: wrong})
