"""Make the brain that ``pnp demo`` measures: three axial slices of the ICBM152 2009a T1 template with tissue labels.

    pip install nilearn && python examples/make_demo_data.py pnp/data/icbm152.npz

Labels: 0 background, 1 ventricular CSF, 2 grey matter, 3 white matter, by the larger tissue probability; fluid counts
as ventricular where it is more than 15 mm inside the brain.
"""

import sys
from pathlib import Path

import nibabel
import nilearn
import numpy as np
from scipy import ndimage

SLICES = (78, 86, 94)  # z = 6, 14, 22 mm

folder = Path(nilearn.__file__).parent / "datasets" / "data"
t1, grey, white = (
    np.asarray(nibabel.load(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz").dataobj, np.float32)
    for name in ("t1", "gm", "wm")
)
brain = ndimage.binary_fill_holes(t1 > 0)
fluid = 255 - grey - white
depth = ndimage.distance_transform_edt(brain)
labels = np.where(white > grey, 3, 2).astype(np.uint8)
labels[fluid > np.maximum(grey, white)] = 0
labels[(fluid > np.maximum(grey, white)) & (depth > 15)] = 1
labels[~brain] = 0

# rows from anterior to posterior, columns from right to left, as radiologists look at axial slices
image, labels = (np.stack([volume[::-1, ::-1, z].T for z in SLICES]) for volume in (t1, labels))
np.savez_compressed(
    sys.argv[1],
    image=np.round(image).astype(np.uint8),
    labels=labels,
    spacing_mm=(1.0, 1.0),
    z_mm=np.array(SLICES) - 72,
)
