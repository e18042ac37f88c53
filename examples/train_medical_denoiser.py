"""Train the bundled denoisers on natural, MRI, CT and ultrasound images.

    python examples/train_medical_denoiser.py DATA runs/medical
    python examples/train_medical_denoiser.py DATA runs/medical-medium --widths 64 128 256 --blocks 2 2 2
    python examples/train_medical_denoiser.py DATA runs/medical --from medical   # goes on from the bundled weights
    python examples/train_medical_denoiser.py DATA runs/medical --device cuda --batch 64 --patch 96 --workers 6
    python examples/train_medical_denoiser.py DATA runs/continuous --continuous
    python examples/train_medical_denoiser.py DATA runs/gradient-step --from medical --gradient-step
    python examples/train_medical_denoiser.py DATA runs/nonexpansive --from medical --nonexpansive 1

DATA holds the folders named below. An interrupted run goes on where it was when it is started again.
"""

import argparse
from pathlib import Path

import torch

import denoisers
from denoisers.data import parse_source

SUBJECTS = ("01", "03", "05", "06", "07", "08", "16", "18", "09")  # the last one validates; 04 is held out, too
SOURCES = {  # files: share in the mix, what they are
    "natural": ("natural/bsd400.npz", ":.40"),
    "ibsr": (",".join(f"ibsr18/IBSR_{subject}.nii.gz" for subject in SUBJECTS), ":.12:complex"),
    "cardiac": ("mri_cardiac/cardiac100.npz", ":.07:complex"),
    "ct-abdomen": (",".join(f"ct_hu/dcmqi_abdomen_0{k}.dcm" for k in (1, 2, 3)), ":.05:hu"),
    "ct-body": ("ct_hu/totalseg_example_ct.nii.gz", ":.03:hu"),
    "ct-head": ("ct_hu/cranium_hu_int16.npz", ":.04:hu"),
    "vertebra": ("ct_vertebra/train.npz", ":.09"),
    "ultrasound": ("busi256/train.npz", ":.20"),
}
CARD = {
    "recipe": "examples/train_medical_denoiser.py",
    "sources": (
        "natural: BSDS400; MRI: IBSR-18 T1 brains (MGH CMA), 100 cardiac slices of Deep-ADMM-Net; CT: dcmqi abdomen, "
        "TotalSegmentator example, InVesalius cranium, EGE-UNet vertebrae; ultrasound: BUSI (Al-Dhabyani 2020)"
    ),
    "licence": (
        "weights under the package's licence; of the training images some are for research and education only (BSDS, "
        "IBSR) and some state no licence (BUSI, vertebrae): the images are not in the package"
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, help="folder for weights, card, log and checkpoint")
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 48, 80, 112], help="channels of each level")
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 2, 1, 1], help="of each level")
    parser.add_argument("--from", dest="start", help="bundled name or weights file to go on from")
    parser.add_argument(
        "--continuous", action="store_true", help="differential equations, --blocks steps at each level"
    )
    parser.add_argument("--gradient-step", action="store_true", help="train D = I - grad g")
    parser.add_argument("--coloured-share", type=float, default=0.0, help="share of patches with noise of any colour")
    parser.add_argument("--nonexpansive", type=float, default=0.0, help="weight of the penalty on expansion")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--squared-share", type=float, default=0.5, help="share of the steps in squared error")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw patches ahead, for a GPU")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # slow numbers, to which what is left of dead units decays
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(options.seed)
    network = (denoisers.ContinuousUNet if options.continuous else denoisers.ResidualUNet)(
        options.widths, options.blocks
    )
    if options.start:
        network = denoisers.load(options.start)
    if options.gradient_step:
        potential = denoisers.GradientStep(**network.settings)
        potential.network.load_state_dict(network.state_dict())
        potential.card = getattr(network, "card", {})
        network = potential
    texts = (
        f"{name}=" + ",".join(str(options.data / file) for file in files.split(",")) + settings
        for name, (files, settings) in SOURCES.items()
    )
    denoisers.train(
        dict(parse_source(text) for text in texts),
        options.out,
        network=network.to(options.device),
        steps=options.steps,
        learning_rate=options.learning_rate,
        batch=options.batch,
        patch=options.patch,
        squared_share=options.squared_share,
        coloured_share=options.coloured_share,
        nonexpansive=options.nonexpansive,
        seed=options.seed,
        workers=options.workers,
        card=CARD,
    )


if __name__ == "__main__":
    main()
