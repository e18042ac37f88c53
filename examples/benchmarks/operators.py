"""The operators beside those of deepinv, ASTRA, scikit-image, SigPy and torchkbnufft: time, accuracy, memory.

    pip install .[peers]
    python examples/benchmarks/operators.py [--rounds 7] [--only TEXT] [--out table.md]

Every program runs in a process of its own, on one thread, and all take turns: process CPU time of the fastest of two to
ten calls in a row (half a second), minimum and median of the rounds. Peak memory is above what the process had after
its imports. Adjointness is |<A x, y> - <x, A'y>| / (|A x| |y|). Of projections, the error of each view is taken against
the phantom's exact bin-averaged projections, relative to the view's norm: the mean and the worst over all views. Every
program may choose its own conventions (rotation about the middle or about a pixel, sense and start of rotation): the
ones that fit best are found first. A program that is not installed is skipped.
"""

import argparse
import contextlib
import importlib.util
import itertools
import math
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

# some files here are named like the packages that they measure
sys.path = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

import numpy as np
import torch

import operators
from operators import coils, masks, phantoms, trajectories
from operators.mri import from_complex, to_complex

PHANTOMS = ("disk", "off-centre disks", "ellipses", "corner disk", "thin bar", "crossed bars", "head")


# ---- CT: each function makes a projector and says what geometry it has


def parallel_angles(views):
    return (torch.arange(views, dtype=torch.float64) + 0.3) * math.pi / views


def fan_angles(views):
    return (torch.arange(views, dtype=torch.float64) + 0.3) * 2 * math.pi / views


def fan_geometry(size):
    return {"source": 2.0 * size, "distance": 2.0 * size, "bins": 2 * math.ceil(0.76 * size), "spacing": 2.0}


def ours_parallel(size, views):
    op = operators.ParallelBeamCT((size, size), parallel_angles(views))
    return op.A, op.A_adjoint, (1, 1, size, size), geometry(op.detectors, 1.0, op.angles)


def deepinv_parallel(size, views):
    import deepinv

    degrees = parallel_angles(views).float() * 180 / math.pi
    op = deepinv.physics.Tomography(degrees, size, circle=False, normalize=False)
    bins = op.A(torch.zeros(1, 1, size, size)).shape[-2]
    return op.A, op.A_adjoint, (1, 1, size, size), geometry(bins, 1.0, parallel_angles(views), transposed=True)


def astra_parallel(size, views, projector="linear"):
    import astra

    bins = math.ceil(math.sqrt(2) * size)
    volume = astra.create_vol_geom(size, size)
    detector = astra.create_proj_geom("parallel", 1.0, bins, parallel_angles(views).numpy())
    op = astra.OpTomo(astra.create_projector(projector, detector, volume))
    return (
        lambda x: op.FP(x),
        lambda y: op.BP(y),
        np.zeros((size, size), np.float32),
        geometry(bins, 1.0, parallel_angles(views)),
    )


def skimage_parallel(size, views):
    from skimage.transform import iradon, radon

    degrees = parallel_angles(views).numpy() * 180 / math.pi
    bins = radon(np.zeros((size, size), np.float32), degrees[:1], circle=False).shape[0]
    return (
        lambda x: radon(x, degrees, circle=False),
        lambda y: iradon(y, degrees, size, filter_name=None, circle=False),
        np.zeros((size, size), np.float32),
        geometry(bins, 1.0, parallel_angles(views), transposed=True),
    )


def ours_fan(size, views):
    g = fan_geometry(size)
    op = operators.FanBeamCT(
        (size, size), fan_angles(views), g["source"], g["distance"], g["bins"], g["spacing"]
    )  # fmt: skip
    return op.A, op.A_adjoint, (1, 1, size, size), geometry(op.detectors, g["spacing"], op.angles, fan=g)


def deepinv_fan(size, views):
    import deepinv

    g = fan_geometry(size)
    parameters = {
        "pixel_spacing": 1.0,
        "source_radius": g["source"],
        "detector_radius": g["distance"],
        "n_detector_pixels": g["bins"],
        "detector_spacing": g["spacing"],
    }
    degrees = fan_angles(views).float() * 180 / math.pi
    op = deepinv.physics.Tomography(degrees, size, normalize=False, fan_beam=True, fan_parameters=parameters)
    shape = op.A(torch.zeros(1, 1, size, size)).shape
    return op.A, op.A_adjoint, (1, 1, size, size), geometry(
        g["bins"], g["spacing"], fan_angles(views), fan=g, transposed=shape[-1] == views
    )  # fmt: skip


def astra_fan(size, views, projector="line_fanflat"):
    import astra

    g = fan_geometry(size)
    volume = astra.create_vol_geom(size, size)
    detector = astra.create_proj_geom(
        "fanflat", g["spacing"], g["bins"], fan_angles(views).numpy(), g["source"], g["distance"]
    )
    op = astra.OpTomo(astra.create_projector(projector, detector, volume))
    return (
        lambda x: op.FP(x),
        lambda y: op.BP(y),
        np.zeros((size, size), np.float32),
        geometry(g["bins"], g["spacing"], fan_angles(views), fan=g),
    )


def geometry(bins, spacing, angles, fan=None, transposed=False):
    found = SimpleNamespace(detectors=bins, spacing=spacing, offset=0.0, angles=angles, transposed=transposed)
    if fan:
        found.source_distance, found.detector_distance, found.detector = fan["source"], fan["distance"], "flat"
    return found


# ---- MRI: the normal product, in both places of the pair


def head_maps(size):
    return coils.birdcage((size, size), 8)


def cartesian_mask(size, kind):
    if kind == "lines":
        return masks.cartesian((size, size), 4, seed=0)
    return masks.poisson((size, size), 8, seed=0)


def ours_cartesian(size, kind):
    op = operators.MRI(cartesian_mask(size, kind), head_maps(size))
    return op.A_adjoint_A, None, (1, 2, size, size), None


def deepinv_cartesian(size, kind):
    import deepinv

    op = deepinv.physics.MultiCoilMRI(
        mask=cartesian_mask(size, kind), coil_maps=head_maps(size)[None], img_size=(size, size)
    )
    return op.A_adjoint_A, None, (1, 2, size, size), None


def sigpy_cartesian(size, kind):
    import sigpy.mri

    sense = sigpy.mri.linop.Sense(head_maps(size).numpy(), weights=cartesian_mask(size, kind).numpy())
    normal = sense.N
    return lambda x: normal(x), None, np.zeros((size, size), np.complex64), None


def spokes(size):
    return trajectories.radial(400, size)


def ours_radial(size):
    op = operators.NonCartesianMRI(spokes(size), (size, size), head_maps(size))
    return op.A_adjoint_A, None, (1, 2, size, size), None


def ours_radial_nuffts(size):
    op = operators.NonCartesianMRI(spokes(size), (size, size), head_maps(size))
    return lambda x: op.A_adjoint(op.A(x)), None, (1, 2, size, size), None


def sigpy_radial(size):
    import sigpy.mri

    coordinates = spokes(size).numpy() * size / (2 * math.pi)
    sense = sigpy.mri.linop.Sense(head_maps(size).numpy(), coord=coordinates)
    normal = sense.H * sense
    return lambda x: normal(x), None, np.zeros((size, size), np.complex64), None


def torchkbnufft_radial(size):
    import torchkbnufft

    points = spokes(size).T.contiguous()
    forward, adjoint = (kind(im_size=(size, size)) for kind in (torchkbnufft.KbNufft, torchkbnufft.KbNufftAdjoint))
    maps = head_maps(size)[None]

    def normal(x):
        return adjoint(forward(x, points, smaps=maps, norm="ortho"), points, smaps=maps, norm="ortho")

    return normal, None, torch.zeros(1, 1, size, size, dtype=torch.complex64), None


def torchkbnufft_toeplitz(size):
    import torchkbnufft

    kernel = torchkbnufft.calc_toeplitz_kernel(spokes(size).T.contiguous(), (size, size), norm="ortho")
    product, maps = torchkbnufft.ToepNufft(), head_maps(size)[None]
    return (
        lambda x: product(x, kernel, smaps=maps, norm="ortho"),
        None,
        torch.zeros(1, 1, size, size, dtype=torch.complex64),
        None,
    )


# ---- Ultrasound


def plane_waves():
    elements = torch.stack([(torch.arange(128) - 63.5) * 0.3e-3, torch.zeros(128)], -1)
    # 256 pixels of 0.12 mm: the last echoes come just before the recording of 1024 samples at 20 MHz ends
    return ((256, 128), torch.linspace(-0.15, 0.15, 5), elements, 1024, 20e6), {"pixel_size": (1.2e-4, 3e-4)}


def ours_plane_waves(**settings):
    arguments, grid = plane_waves()
    op = operators.PlaneWaveUltrasound(*arguments, **grid, **settings)
    return op.A, op.A_adjoint, (1, 1, 256, 128), None


def ours_plane_waves_free():
    return ours_plane_waves(memory_limit=0)


def deepinv_plane_waves():
    import deepinv

    arguments, grid = plane_waves()
    op = deepinv.physics.UltrasoundPlaneWave(*arguments, **grid)
    return op.A, op.A_adjoint, (1, 1, 256, 128), None


CASES = {
    "Parallel CT 256 x 256, 180 views": {
        "this package": (ours_parallel, 256, 180),
        "deepinv": (deepinv_parallel, 256, 180),
        "astra linear": (astra_parallel, 256, 180),
        "astra strip": (astra_parallel, 256, 180, "strip"),
        "skimage": (skimage_parallel, 256, 180),
    },
    "Parallel CT 512 x 512, 360 views": {
        "this package": (ours_parallel, 512, 360),
        "deepinv": (deepinv_parallel, 512, 360),
        "astra linear": (astra_parallel, 512, 360),
    },
    "Fan beam CT 256 x 256, 180 views": {
        "this package": (ours_fan, 256, 180),
        "deepinv": (deepinv_fan, 256, 180),
        "astra line": (astra_fan, 256, 180),
        "astra strip": (astra_fan, 256, 180, "strip_fanflat"),
    },
    "MRI normal product 8 x 256 x 256, Poisson mask": {
        "this package": (ours_cartesian, 256, "poisson"),
        "deepinv": (deepinv_cartesian, 256, "poisson"),
        "sigpy": (sigpy_cartesian, 256, "poisson"),
    },
    "MRI normal product 8 x 256 x 256, lines": {
        "this package": (ours_cartesian, 256, "lines"),
        "deepinv": (deepinv_cartesian, 256, "lines"),
        "sigpy": (sigpy_cartesian, 256, "lines"),
    },
    "Radial MRI normal product 8 x 256 x 256, 400 spokes": {
        "this package": (ours_radial, 256),
        "this package, two NUFFTs": (ours_radial_nuffts, 256),
        "sigpy, two NUFFTs": (sigpy_radial, 256),
        "torchkbnufft, two NUFFTs": (torchkbnufft_radial, 256),
        "torchkbnufft Toeplitz": (torchkbnufft_toeplitz, 256),
    },
    "Plane-wave ultrasound 256 x 128, 5 angles, 128 elements, 1024 samples": {
        "this package": (ours_plane_waves,),
        "this package, matrix-free": (ours_plane_waves_free,),
        "deepinv": (deepinv_plane_waves,),
    },
}
MODULES = {"astra": "astra", "skimage": "skimage", "sigpy": "sigpy", "torchkbnufft": "torchkbnufft"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="cases whose name contains this text")
    parser.add_argument("--out", help="markdown file for the table")
    options = parser.parse_args()
    lines, chosen = [], [case for case in CASES if options.only.lower() in case.lower()]
    if not chosen:
        parser.error(f"--only: expected a part of one of {', '.join(CASES)}, got {options.only}")
    for case in chosen:
        lines += [f"### {case}", "", *run(case, CASES[case], options.rounds), ""]
    if options.out:
        with open(options.out, "w") as file:
            file.write("\n".join(lines))


def run(case, programs, rounds):
    found = {}
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in programs:
            module = MODULES.get(name.split(",")[0].split()[0])
            if module and importlib.util.find_spec(module) is None:
                print(f"{case}: {name} is not installed, skipped")
            else:
                workers[name] = stack.enter_context(worker(case, name))
        times = {name: [] for name in workers}
        for _ in range(rounds):
            for name, connection in workers.items():
                connection.send("round")
                times[name].append(connection.recv())
        for name, connection in workers.items():
            connection.send("report")
            found[name] = connection.recv()
    rows = {name: dict(row) for name, (row, _) in found.items()}
    for label in times["this package"][0]:
        title = f"{label} ms" if len(times["this package"][0]) > 1 else "A'A ms"
        for statistic in (min, statistics.median):
            typical = {name: statistic(each[label] for each in rounds) for name, rounds in times.items()}
            for name, value in typical.items():
                ratio = "" if name == "this package" else f" ({value / typical['this package']:.1f}x)"
                mark = title if statistic is min else f"{title}, median"
                rows[name][mark] = f"{1e3 * value:.1f}{ratio}"
    if "Radial" in case:
        truth = transform_of_random()
        for name, (_, (product, *_)) in found.items():
            product = torch.from_numpy(product)
            scale = (product.conj() * truth).sum().real / product.abs().square().sum()  # each has its own
            rows[name]["error"] = f"{relative(scale * product, truth):.0e}"
    if "ultrasound" in case and "deepinv" in found:
        for name, (_, products) in found.items():
            if name != "deepinv":
                errors = (f"{relative(a, b):.0e}" for a, b in zip(products, found["deepinv"][1]))
                rows[name]["difference to deepinv"] = " / ".join(errors)
    return table(rows)


@contextlib.contextmanager
def worker(case, name):
    """The near end of a connection to a process that runs one program, once it is ready."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=serve, args=(case, name, far), daemon=True)
    process.start()
    near.recv()
    yield near
    process.kill()


def serve(case, name, connection):
    """Set a program up and time it whenever asked, in a process whose memory no other program has used."""
    torch.set_num_threads(1)
    make, *arguments = CASES[case][name]
    module = {"this package": "finufft", "deepinv": "deepinv"} | MODULES
    importlib.import_module(module.get(name.split(",")[0].split()[0], "operators"))
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # what was the peak during the imports is forgotten
    began = time.process_time()
    forward, adjoint, image, where = make(*arguments)
    x = random(image)
    y = forward(x)
    row = {"set-up s": f"{time.process_time() - began:.2f}"}
    products = (y,) if adjoint is None else (y, adjoint(y))
    row["peak MB"] = f"{resident('VmHWM') - before:.0f}"
    connection.send("ready")
    while connection.recv() == "round":
        times = {}
        for label, product, value in (("A", forward, x), ("A'", adjoint, y)):
            if product is not None:
                times[label] = fastest(product, value)
        connection.send(times)
    if adjoint is not None:
        row["adjointness"] = f"{adjointness(forward, adjoint, x, y):.0e}"
    if where is not None:
        for phantom, (mean, worst) in accuracy(forward, x, where, np.shape(x)[-1]).items():
            row[f"{phantom} %"] = f"{100 * mean:.2f} / {100 * worst:.2f}"
    if "Radial" in case:
        products = (product_of_random(forward, image),)
    connection.send((row, [np.asarray(product) for product in products]))


def fastest(product, value):
    """Of a few calls in a row, as in a solver: the first finds caches and memory as the other programs left them."""
    times = []
    while len(times) < 2 or (len(times) < 10 and sum(times) < 0.5):
        began = time.process_time()
        product(value)
        times.append(time.process_time() - began)
    return min(times)


def random(image):
    """Uniform random values: of the shape, or of the kind of an example."""
    rng = np.random.default_rng(0)
    if isinstance(image, tuple):
        return torch.from_numpy(rng.random(image, np.float32))
    values = rng.random(tuple(image.shape), np.float32)
    if isinstance(image, torch.Tensor):
        return torch.from_numpy(values).to(image.dtype)
    return values.astype(image.dtype)


def adjointness(forward, adjoint, x, y):
    rng = np.random.default_rng(1)
    x, y = (rng.standard_normal(tuple(v.shape)).astype(np.float32) for v in (x, y))
    torches = isinstance(forward(random(x.shape)) if x.ndim == 4 else None, torch.Tensor)
    ax, ay = (np.asarray(f(torch.from_numpy(v) if torches else v), np.float64) for f, v in ((forward, x), (adjoint, y)))
    return abs((ax * y).sum() - (x * ay).sum()) / (np.linalg.norm(ax) * np.linalg.norm(y))


def accuracy(forward, x, where, size):
    """Mean and worst relative error over the views, for each phantom, in the program's own conventions."""

    def project(name, centre):
        image = phantoms.image(name, (size, size), centre=centre)
        found = forward(image[None, None] if isinstance(x, torch.Tensor) else image.numpy())
        found = torch.as_tensor(np.asarray(found, np.float32)).squeeze()
        return found.T if where.transposed else found

    def exact(name, convention, step=1):
        sense, start, mirrored, _ = convention
        turned = SimpleNamespace(**vars(where), image_shape=(1, size, size))
        turned.angles = (sense * where.angles + start)[::step]
        truth = phantoms.projections(name, turned, finer=4 if step > 1 else 32)
        return truth.flip(1) if mirrored else truth

    middles = [(0, 0), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (-0.5, -0.5)]
    search = project("off-centre disks", (0, 0))[::12]
    turns = list(itertools.product((1, -1), (0, math.pi / 2, math.pi, -math.pi / 2), (False, True), middles[:1]))
    turns.sort(key=lambda convention: float((search - exact("off-centre disks", convention, 12)).norm()))
    tries = [(*turns[0][:3], middle) for middle in middles]
    best = min(
        tries, key=lambda c: float((project("off-centre disks", c[3])[::12] - exact("off-centre disks", c, 12)).norm())
    )
    errors = {}
    for name in PHANTOMS:
        truth = exact(name, best)
        error = (project(name, best[3]) - truth).norm(dim=1) / truth.norm(dim=1)
        errors[name] = error.mean().item(), error.max().item()
    return errors


def random_image(size=256):
    return to_complex(random((1, 2, size, size)))[0].to(torch.complex128)


def transform_of_random(size=256):
    """The radial normal product of one random image by the discrete Fourier transform written out."""
    image, maps = random_image(size), head_maps(size).to(torch.complex128)
    place = torch.arange(size, dtype=torch.float64) - size // 2
    total = torch.zeros(size, size, dtype=torch.complex128)
    for points in spokes(size).double().split(5000):
        down, across = (torch.exp(-1j * points[:, k, None] * place) for k in (0, 1))
        y = torch.stack([((down @ (m * image)) * across).sum(1) for m in maps]) / size**2
        total += sum(m.conj() * (down.conj().T @ (s[:, None] * across.conj())) for m, s in zip(maps, y))
    return total


def product_of_random(normal, example, size=256):
    """The same by a program, whatever kind of image it takes."""
    image = random_image(size)
    if isinstance(example, np.ndarray):
        return normal(image.numpy().astype(np.complex64))
    if isinstance(example, torch.Tensor):
        return normal(image.to(torch.complex64)[None, None])[0, 0]
    return to_complex(normal(from_complex(image[None].to(torch.complex64))))[0]


def relative(a, b):
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return float((a - b).norm() / b.norm())


def resident(what):
    """Memory of this process in MB, as Linux tells it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(what + ":")[1].split()[0]) / 1024


def table(rows):
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(row.get(c, "") for c in columns) + " |" for name, row in rows.items()]
    print("\n".join(lines), flush=True)
    return lines


if __name__ == "__main__":
    main()
