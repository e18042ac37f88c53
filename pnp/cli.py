"""The command ``pnp``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch


def main(arguments: list[str] | None = None) -> int:
    """Run a command; wrong input ends with one line on stderr and exit code 2."""
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        options.run(options)
    except (ValueError, TypeError, OSError) as error:
        print(f"pnp: {error}", file=sys.stderr)
        return 2
    return 0


def demo(options) -> None:
    from pnp import demo, report

    began = time.perf_counter()
    results = demo.run(options.out, options.acceleration)
    print(report.table_text(results["rows"]))
    taken = time.perf_counter() - began
    print(f"\n{taken:.0f} s in all. Open {options.out / 'report.html'}; see figure.png and results.json there, too.")


def reconstruct(options) -> None:
    import denoisers
    from pnp import io
    from pnp.solver import solve

    scan = io.load(options.file)
    if scan.op is None:
        raise ValueError(f"FILE: expected raw k-space, got an image in {options.file}; segment it with: pnp segment")
    found = scan.metadata
    height, width = found["shape"]
    noise = ", ".join(f"{level:.3g}" for level in found["noise"])
    print(f"{options.file}: {found['coils']} coils, {height} x {width}, {found['acceleration']:.2f}x undersampled")
    if found["calibration"]:
        print(f"calibration region {found['calibration'][0]} x {found['calibration'][1]}; noise of the coils {noise}")
    solution = solve(scan.op, scan.y, denoisers.load(options.denoiser), algorithm=options.algorithm, progress=True)
    print(solution)
    out = options.out or options.file.with_name(options.file.stem + "-pnp")
    for ending in (".nii.gz", ".png"):
        print("wrote", io.save(_with_ending(out, ending), solution.x, like=scan))


def segment(options) -> None:
    import segmentation
    from pnp import io

    scan = io.load(options.file)
    segmenter = segmentation.load(options.model)
    if scan.image is None:
        import denoisers
        from pnp.solver import solve

        scan.image = solve(scan.op, scan.y, denoisers.load("medical"), progress=True).x
    labels = torch.cat([segmenter.predict(part) for part in scan.image.split(8)])
    out = options.out or options.file.with_name(options.file.name.split(".")[0] + "-labels.nii.gz")
    print("wrote", io.save(out, labels.to(torch.uint8), like=scan))
    voxel = 1.0 if scan.spacing is None else scan.spacing[0] * scan.spacing[1] * scan.spacing[2]
    unit = "pixels" if scan.spacing is None else "ml"
    for k, name in enumerate(segmenter.classes[1:], 1):
        volume = (labels == k).sum().item() * voxel
        print(f"{k} {name:14s} {volume if scan.spacing is None else volume / 1000:.0f} {unit}")


def evaluate(options) -> None:
    from pnp.joint import tasks

    if options.task == "brain-tissue":
        if options.labels is None:
            raise ValueError("--labels: expected the label volumes of the images, in the same order")
        task = tasks.brain_tissue(options.files, options.labels, count=options.count, model=options.model)
    else:
        if len(options.files) != 1:
            raise ValueError(f"FILE: expected one file or folder of images and masks, got {len(options.files)}")
        make = tasks.vertebra if options.task == "vertebra" else tasks.breast_lesion
        task = make(options.files[0], count=options.count, model=options.model)
    solvers = options.solvers.split(",") if options.solvers else None
    options.out.mkdir(parents=True, exist_ok=True)
    table = task.evaluate(solvers, workers=options.workers, out=options.out / "rows.csv", progress=True)
    print(table)
    if len(set(table.frame["solver"]) - {"oracle"}) >= 3:
        rank = table.rank_correlation()
        print(f"rank correlation of PSNR and Dice {rank['rho']:.2f} ({rank['low']:.2f} to {rank['high']:.2f})")
    table.plot(options.out / "dice-psnr.png")
    print(f"wrote {options.out / 'rows.csv'} and {options.out / 'dice-psnr.png'}")


def models(options) -> None:
    import denoisers
    import segmentation

    for kind, package in (("denoiser", denoisers), ("segmenter", segmentation)):
        for card in package.available():
            print(f"{kind} {card['name']}: {card['architecture']}, {card['parameters'] / 1e6:.2f} M parameters")
            for key in (
                "task",
                "data",
                "recipe",
                "cpu_hours",
                "validation_psnr",
                "validation_dice",
                "test_dice",
                "licence",
            ):
                if card.get(key):
                    print(f"    {key.replace('_', ' ')}: {card[key]}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pnp", description="Plug-and-play reconstruction, chained into segmentation.")
    parser.add_argument("--threads", type=int, help="processor threads, default all")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("demo", help="measure, reconstruct and segment a brain that ships with the package")
    command.add_argument("--out", type=Path, default=Path("pnp-demo"), help="folder for report, figure and results")
    command.add_argument("--acceleration", type=float, default=4, help="undersampling factor (default 4)")
    command.set_defaults(run=demo)

    command = commands.add_parser("reconstruct", help="reconstruct raw k-space")
    command.add_argument("file", type=Path, help="k-space: BART .cfl/.hdr, or .npy (coils, H, W)")
    command.add_argument("--out", type=Path, help="name of the images to write, default FILE-pnp")
    command.add_argument("--denoiser", default="medical", help="bundled name, deepinv/NAME or weights file")
    command.add_argument("--algorithm", help="default the recommended one; direct, cg, hqs")
    command.set_defaults(run=reconstruct)

    command = commands.add_parser("segment", help="segment an image, or raw k-space after reconstruction")
    command.add_argument("file", type=Path, help="NIfTI, DICOM (file or folder), .npy image, or raw k-space")
    command.add_argument("--model", default="brain-tissue", help="bundled name or weights file")
    command.add_argument("--out", type=Path, help="label map to write, default FILE-labels.nii.gz")
    command.set_defaults(run=segment)

    command = commands.add_parser("evaluate", help="judge reconstruction and segmentation together on labelled images")
    command.add_argument("task", choices=("brain-tissue", "vertebra", "breast-lesion"), help="see pnp.joint.tasks")
    command.add_argument("files", type=Path, nargs="+", help="NIfTI brains; or one .npz or folder of images and masks")
    command.add_argument("--labels", type=Path, nargs="+", help="NIfTI labels of the brains")
    command.add_argument("--solvers", help="names with commas between, such as oracle,direct,tv,pnp; default seven")
    command.add_argument("--count", type=int, default=20, help="number of slices (default 20)")
    command.add_argument("--model", default="light", help="network of the segmenter: light or unet")
    command.add_argument("--workers", type=int, default=1, help="number of processes")
    command.add_argument("--out", type=Path, default=Path("pnp-evaluate"), help="folder for rows and figure")
    command.set_defaults(run=evaluate)

    command = commands.add_parser("models", help="list the bundled weights with their model cards")
    command.set_defaults(run=models)
    return parser


def _with_ending(path: Path, ending: str) -> Path:
    for known in (".nii.gz", ".nii", ".png"):
        path = path.with_name(path.name.removesuffix(known))
    return path.with_name(path.name + ending)


if __name__ == "__main__":
    sys.exit(main())
