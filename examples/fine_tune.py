"""Fine-tune a bundled denoiser on twenty of one's own images, in about ten minutes on one core.

    python examples/fine_tune.py my_images/ runs/mine
    python examples/fine_tune.py my_images.npz runs/mine --noisy    # where there are no clean ones

Images are those of a folder, npz, NIfTI or DICOM file (--hu for CT in Hounsfield units). The first twenty train, of
fewer four in five; the rest (up to twenty, evenly spread) show what it brought: PSNR before and after, at several noise
levels in 1/255 of the images' range. With --noisy, the training images get noise of 10/255 first and training sees
nothing else of them; for images that are noisy already, use ``python -m denoisers.train mine=my_images/:noisy --from
medical --steps 2500 --learning-rate 1e-3 --out runs/mine``. The result is ``runs/mine/weights.safetensors``, for
``denoisers.load``.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import denoisers
from denoisers.data import Source, read_images
from denoisers.training import validate


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--from", dest="start", default="medical", help="bundled name or weights file")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--hu", action="store_true", help="CT in Hounsfield units")
    parser.add_argument("--noisy", action="store_true", help="train on images with noise of 10/255")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = read_images(options.images)
    if len(images) == 1 and images[0].ndim == 3:
        quarter = len(images[0]) // 4
        images = list(images[0][quarter : len(images[0]) - quarter])
    if len(images) < 2:
        raise SystemExit(f"images: expected at least two, found {len(images)}")
    count = min(20, len(images) * 4 // 5)
    mine, others = images[:count], images[count:]
    if options.noisy:
        noise = np.random.default_rng(0)
        ranges = [2000 if options.hu else np.percentile(image, 99.9) for image in mine]
        mine = [image + 10 / 255 * r * noise.standard_normal(image.shape) for image, r in zip(mine, ranges)]
    unseen = {"unseen": Source(others, validation=1.0, hounsfield=options.hu)}
    network = denoisers.load(options.start)
    before = validate(network, unseen, count=20)["unseen"]
    tuned = denoisers.train(
        {"mine": Source(mine, noisy=options.noisy, validation=0, hounsfield=options.hu)},
        options.out,
        network=network,
        steps=options.steps,
        learning_rate=1e-3,
        warmup=50,
        squared_share=1.0,
        average=0.99,
    )
    after = validate(tuned, unseen, count=20)["unseen"]
    print("noise in 1/255:  " + "".join(f"{level:>8}" for level in before))
    for name, row in (("before, dB", before), ("after, dB", after)):
        print(f"{name:<17}" + "".join(f"{value:8.2f}" for value in row.values()))


if __name__ == "__main__":
    main()
