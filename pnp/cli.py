"""The command ``pnp``."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from operators.operator import whole
from pnp import io


def main(arguments: list[str] | None = None) -> int:
    """Run a command; wrong input ends with one line on stderr and exit code 2."""
    options = _parser().parse_args(arguments)
    try:
        if options.threads is not None:
            torch.set_num_threads(whole("--threads", options.threads))
        options.run(options)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
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
    from pnp.solver import solve

    file = options.file.resolve()
    scan = io.load(file)
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
    out = options.out or file.with_name(_stem(file) + "-pnp.nii.gz")
    stem = _stem(out, io.WRITTEN)
    ending = out.name[len(stem) :]
    for kind in (".nii.gz" if ending.lower() in ("", ".png") else ending, ".png"):
        print("wrote", io.save(out.with_name(stem + kind), solution.x, like=scan))


def segment(options) -> None:
    import segmentation

    segmenter = segmentation.load(options.model)
    file = options.file.resolve()
    scan, labels = _segmented(file, segmenter)
    out = options.out or file.with_name(_stem(file) + "-labels.nii.gz")
    print("wrote", io.save(out, labels, like=scan, classes=segmenter.classes))
    unit = "pixels" if scan.spacing is None else "ml"
    for k, (name, size) in enumerate(_sizes(scan, labels, segmenter.classes).items(), 1):
        print(f"{k} {name:14s} {size:.0f} {unit}")


def batch(options) -> None:
    """Files that are done with this model and have not changed are left out, those that fail are named."""
    import pandas

    import segmentation
    from denoisers.weights import replace

    folder = options.folder.resolve()
    files = sorted(path for path in folder.iterdir() if io.readable(path))
    if not files:
        raise ValueError(f"FOLDER: expected images or raw k-space (see pnp segment --help) in {options.folder}")
    segmenter = segmentation.load(options.model)
    stems = Counter(_stem(path) for path in files)
    out = options.out or folder.with_name(folder.name + "-pnp")
    out.mkdir(parents=True, exist_ok=True)
    table = out / "batch.csv"
    text = dict.fromkeys(("file", "model", "changed", "error"), str)
    rows = pandas.read_csv(table, dtype=text).fillna({"error": ""}).to_dict("records") if table.exists() else []
    # what failed, has changed, or was done with another model is done again
    wanted = {path.name: {"model": options.model, "changed": _changed(path), "error": ""} for path in files}
    rows = [row for row in rows if row == row | wanted.get(row["file"], {"error": ""})]
    done = {row["file"] for row in rows} & set(wanted)
    if done:
        print(f"{len(done)} of {len(files)} files are done already")
    for path in (path for path in files if path.name not in done):
        row, began = {"file": path.name} | wanted[path.name], time.perf_counter()
        name = _stem(path) if stems[_stem(path)] == 1 else path.name
        try:
            scan, labels = _segmented(path, segmenter)
            if scan.op is not None:
                io.save(out / f"{name}.nii.gz", scan.image, like=scan)
            io.save(out / f"{name}-labels.nii.gz", labels, like=scan)
            row |= {"unit": "pixels" if scan.spacing is None else "ml"} | _sizes(scan, labels, segmenter.classes)
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            row["error"] = str(error)
        rows.append(row | {"seconds": round(time.perf_counter() - began, 1)})
        print(f"{path.name}: {row['error'] or 'done'} ({rows[-1]['seconds']} s)", flush=True)
        replace(table, pandas.DataFrame(rows).to_csv(index=False).encode())
    print(f"wrote {table}")
    if failed := [row["file"] for row in rows if row["error"]]:
        raise ValueError(f"{len(failed)} of {len(rows)} files failed: {', '.join(failed)}")


def _changed(path: Path) -> str:
    """When a file, or the last of a folder's, was changed, and how many bytes there are."""
    found = [file.stat() for file in (path.iterdir() if path.is_dir() else [path])]
    return f"{max(f.st_mtime_ns for f in found)} {sum(f.st_size for f in found)}"


def _segmented(path: Path, segmenter):
    """A scan, its image reconstructed where the file holds raw k-space, and the labels."""

    scan = io.load(path)
    if scan.image is None:
        import denoisers
        from pnp.solver import solve

        scan.image = solve(scan.op, scan.y, denoisers.load("medical"), progress=sys.stderr.isatty()).x
    labels = torch.cat([segmenter.predict(part) for part in scan.image.split(8)])
    return scan, labels.to(torch.uint8)


def _sizes(scan, labels: torch.Tensor, classes) -> dict[str, float]:
    """Volume of each class in ml, or its pixels where the file does not tell the spacing."""
    voxel = 1.0 if scan.spacing is None else scan.spacing[0] * scan.spacing[1] * scan.spacing[2] / 1000
    return {name: (labels == k).sum().item() * voxel for k, name in enumerate(classes[1:], 1)}


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
    command.add_argument("--out", type=Path, help="image to write, beside a picture (default FILE-pnp.nii.gz)")
    command.add_argument("--denoiser", default="medical", help="bundled name, deepinv/NAME or weights file")
    command.add_argument("--algorithm", help="default the recommended one; direct, cg, hqs")
    command.set_defaults(run=reconstruct)

    command = commands.add_parser("segment", help="segment an image, or raw k-space after reconstruction")
    command.add_argument("file", type=Path, help="NIfTI, DICOM (file or folder), .npy image, or raw k-space")
    command.add_argument("--model", default="brain-tissue", help="bundled name or weights file")
    command.add_argument("--out", type=Path, help="label map to write (.nii.gz, .dcm, ...), default FILE-labels.nii.gz")
    command.set_defaults(run=segment)

    command = commands.add_parser("batch", help="segment all files of a folder, raw k-space after reconstruction")
    command.add_argument("folder", type=Path, help="folder of files as of pnp segment")
    command.add_argument("--model", default="brain-tissue", help="bundled name or weights file")
    command.add_argument("--out", type=Path, help="folder for images, label maps and batch.csv, default FOLDER-pnp")
    command.set_defaults(run=batch)

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


def _stem(path: Path, endings: tuple[str, ...] = (*io.ENDINGS, ".hdr")) -> str:
    """The file's name without the ending that tells its kind."""
    longest_first = sorted(endings, key=len, reverse=True)
    return next((path.name[: -len(e)] for e in longest_first if path.name.lower().endswith(e)), path.name)


if __name__ == "__main__":
    sys.exit(main())
