"""The segmentation networks beside each other: size, work, time and memory; and accuracy at equal epochs.

    python examples/benchmarks/segmentation.py                      # size, work, time, memory
    python examples/benchmarks/segmentation.py --data DATA --set busi256 --models light,unet,ukan --seeds 0,1,2 \\
        --epochs 60 --out runs/accuracy                             # trains (hours), then prints the table

Times are of one thread in process CPU time, the minimum of rounds in which all networks take turns, at 256 x 256,
batch 1; memory is the peak above what the process had, each network in a process of its own. For accuracy, all networks
get the same slices in the same order, the same augmentation, optimiser and number of epochs; the epoch with the best
Dice on the validation slices is scored on test slices that nothing was chosen by. Intervals are bootstrapped over the
test images, of whose scores the seeds' mean is taken; comparisons are paired by image.
"""

import argparse
import multiprocessing
import sys
import time
from functools import partial
from pathlib import Path

# some files here are named like the packages that they measure
sys.path = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

import numpy as np
import pandas
import torch
import torch.nn.functional as F
from monai.networks.nets import UNet as MonaiUNet
from torch.utils.flop_counter import FlopCounterMode

import segmentation
from segmentation import UKAN, ImplicitUKAN2, TransUNet, UNet, kan
from segmentation.data import read, read_volume, split
from segmentation.evaluation import Scores, evaluate, interval


def recursive(layer, x):
    """The layer of curves as published: Cox and de Boor's recursion, kept for the backward pass."""
    rows, grid = x.reshape(-1, layer.in_features).unsqueeze(-1), layer.grid
    values = ((rows >= grid[:, :-1]) & (rows < grid[:, 1:])).to(x.dtype)
    for k in range(1, 4):
        left = (rows - grid[:, : -(k + 1)]) / (grid[:, k:-1] - grid[:, : -(k + 1)]) * values[..., :-1]
        right = (grid[:, k + 1 :] - rows) / (grid[:, k + 1 :] - grid[:, 1:-k]) * values[..., 1:]
        values = left + right
    weight = (layer.spline_weight * layer.spline_scaler.unsqueeze(-1)).flatten(1)
    y = F.linear(F.silu(rows.squeeze(-1)), layer.base_weight) + F.linear(values.flatten(1), weight)
    return y.view(*x.shape[:-1], layer.out_features)


def recursive_ukan(classes, channels=1):
    network = UKAN(classes, channels)
    for layer in network.modules():
        if isinstance(layer, kan.KANLinear):
            layer.forward = recursive.__get__(layer)
    return network


def monai_unet(classes, channels=1):
    return MonaiUNet(2, channels, classes, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2)


NETWORKS = {
    "U-Net-16": UNet,
    "MONAI UNet": monai_unet,
    "U-KAN, recursive basis": recursive_ukan,
    "U-KAN": UKAN,
    "TransUNet": TransUNet,
    "Implicit U-KAN 2.0, paper": lambda k, c=1: ImplicitUKAN2(k, c, "paper"),
    "Implicit U-KAN 2.0, light": ImplicitUKAN2,
}
MODELS = {
    "unet": "U-Net-16",
    "ukan": "U-KAN",
    "transunet": "TransUNet",
    "paper": "Implicit U-KAN 2.0, paper",
    "light": "Implicit U-KAN 2.0, light",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--data", type=Path, help="folder of the image sets; without it, no accuracy")
    parser.add_argument("--set", default="busi256", choices=SETS)
    parser.add_argument("--models", default="light,unet,ukan")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.data is None:
        layers(options.rounds)
        speed(options.rounds)
    else:
        accuracy(options)


def layers(rounds):
    print("| KAN layer, 4096 tokens | recursion ms | here ms | ratio |\n|---|---|---|---|")
    for width in (128, 256):
        layer = kan.KANLinear(width, width)
        x, g = torch.randn(4096, width), torch.randn(4096, width)
        functions = {"recursion": partial(recursive, layer), "here": layer}
        with torch.no_grad():
            times = turns({name: partial(f, x) for name, f in functions.items()}, rounds)
        compare(f"{width} to {width}, forward", times)
        x = x.clone().requires_grad_()
        times = turns({name: partial(there_and_back, f, x, g) for name, f in functions.items()}, rounds)
        compare(f"{width} to {width}, forward and backward", times)
    print()


def there_and_back(function, x, g):
    function(x).backward(g)


def compare(name, times):
    old, new = times["recursion"], times["here"]
    print(f"| {name} | {1e3 * old:.1f} | {1e3 * new:.1f} | {old / new:.1f}x |", flush=True)


def turns(functions, rounds):
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds + 1):
        for name, function in functions.items():
            began = time.process_time()
            function()
            best[name] = min(best[name], time.process_time() - began)
    return best


def speed(rounds):
    networks = {name: make(2).to(memory_format=torch.channels_last) for name, make in NETWORKS.items()}
    x = torch.randn(1, 1, 256, 256)
    labels = torch.randint(2, (1, 256, 256))

    def infer(network):
        with torch.no_grad():
            network.eval()(x)

    def learn(network):
        F.cross_entropy(network.train()(x), labels).backward()

    times = [turns({n: lambda f=f, m=m: f(m) for n, m in networks.items()}, rounds) for f in (infer, learn)]
    print(
        "| network | parameters | GFLOP | inference ms | of U-KAN's | training step ms | peak MB, inference, training |"
    )
    print("|---" * 7 + "|")
    context = multiprocessing.get_context("spawn")
    for name, network in networks.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.eval()(x)
        with context.Pool(1) as pool:
            memory = pool.apply(peak, (name,))
        parameters = sum(p.numel() for p in network.parameters()) / 1e6
        share = times[0][name] / times[0]["U-KAN"]
        values = (
            f"{parameters:.2f} M | {counter.get_total_flops() / 1e9:.1f} | {1e3 * times[0][name]:.1f} | {share:.2f}"
        )
        print(f"| {name} | {values} | {1e3 * times[1][name]:.0f} | {memory[0]:.0f}, {memory[1]:.0f} |", flush=True)


def peak(name):
    """MB above what the network itself takes: for inference, and for a training step."""
    torch.set_num_threads(1)
    network, x, found = NETWORKS[name](2), torch.randn(1, 1, 256, 256), []
    for training in (False, True):
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # what was the peak so far is forgotten
        with torch.set_grad_enabled(training):
            y = network.train(training)(x)
        if training:
            y.sum().backward()
        found.append(resident("VmHWM") - before)
    return found


def resident(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(kind))) / 1024


def halved(cases):
    """Every second pixel: means of four for images."""
    return {
        name: [(F.avg_pool2d(torch.from_numpy(i), 2).numpy(), np.ascontiguousarray(l[::2, ::2])) for i, l in pairs]
        for name, pairs in cases.items()
    }


def brains(folder):
    """Coronal slices at 2 mm by subject."""
    cases = {}
    for labels in sorted((folder / "ibsr18").glob("*_seg.nii.gz")):
        image = labels.with_name(labels.name.replace("_seg", ""))
        pairs = [(i[None], l) for i, l in read_volume(image, labels, axes=(1,))[::2]]
        cases[image.name.split(".")[0]] = pairs
    return cases


SETS = {
    "dsb2018": (lambda folder: read(folder / "dsb2018" / "train.npz"), ("background", "nucleus"), 128),
    "busi256": (lambda folder: halved(read(folder / "busi256" / "train.npz")), ("background", "lesion"), 128),
    "ibsr18": (brains, ("background", "CSF", "grey matter", "white matter"), 160),
}


def accuracy(options):
    load, classes, size = SETS[options.set]
    cases = load(options.data)
    shares = {"validation": 0.1, "test": 0.2} if options.set == "ibsr18" else {}
    parts = split(list(cases), options.out / f"{options.set}-split.json", **shares)
    training, validation, test = (
        [p for name in parts[k] for p in cases[name]] for k in ("training", "validation", "test")
    )
    found, hours = {}, {}
    for model in options.models.split(","):
        for seed in map(int, options.seeds.split(",")):
            torch.manual_seed(seed)
            network = NETWORKS[MODELS[model]](len(classes), len(training[0][0]))
            folder = options.out / f"{options.set}-{model}-{options.epochs}-{seed}"
            settings = {"validation": validation, "epochs": options.epochs, "size": size, "seed": seed}
            network = segmentation.train(training, classes, folder, network=network, **settings, progress=False)
            segmenter = segmentation.Segmenter(network.eval(), classes)
            found.setdefault(model, []).append(evaluate(segmenter.predict, test, classes).frame)
            log = pandas.read_csv(folder / "log.csv")
            hours.setdefault(model, []).append(log["cpu_seconds"].iloc[-1])
            print(f"{model}, seed {seed}: Dice {found[model][-1]['dice'].mean():.4f}", file=sys.stderr, flush=True)
    scores = {}
    for model, frames in found.items():  # the seeds' mean for each image
        numeric = pandas.concat(frames).groupby(["image", "class"], sort=False).mean(numeric_only=True).reset_index()
        scores[model] = Scores(numeric)
    print(
        f"{options.set}: {len(training)} training, {len(validation)} validation, {len(test)} test slices, "
        f"{options.epochs} epochs, {size} x {size}"
    )
    print("| network | Dice, 95 % interval | by seed | IoU | HD95 | minus U-KAN, paired | CPU-seconds a seed |")
    print("|---" * 7 + "|")
    for model, score in scores.items():
        dice = score.images("dice")
        low, high = interval(dice[np.isfinite(dice)])
        seeds = ", ".join(f"{frame['dice'].mean():.3f}" for frame in found[model])
        others = score.frame[["iou", "hd95"]].mean()
        gain = score.compare(scores.get("ukan", score))
        print(
            f"| {MODELS[model]} | {np.nanmean(dice):.3f} ({low:.3f} to {high:.3f}) | {seeds} | {others['iou']:.3f} | "
            f"{others['hd95']:.1f} | {gain['difference']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f}) | "
            f"{np.mean(hours[model]):.0f} |"
        )


if __name__ == "__main__":
    main()
