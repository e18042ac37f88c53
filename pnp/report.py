"""Pictures and self-contained HTML pages of results."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from denoisers.weights import replace
from pnp.quality import magnitude

TISSUES = ListedColormap(["#00000000", "#3b7dd8", "#e0a526", "#f4efe0", "#b5485d", "#4fa36c", "#8d63b8", "#5bb7c4"])

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1d2329;background:#fff}
h1{font-size:1.6rem;line-height:1.2}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:.35rem .6rem;border-bottom:1px solid #d9dee3;text-align:right}
th:first-child,td:first-child{text-align:left}
img{max-width:100%}
.slider{position:relative;width:min(100%,30rem);background:#000;overflow:hidden}
.slider img{display:block;width:100%}
.slider img+img{position:absolute;inset:0;clip-path:inset(0 0 0 var(--at,50%))}
.slider::after{content:"";position:absolute;top:0;bottom:0;left:var(--at,50%);width:2px;background:#fff}
.slider span{position:absolute;bottom:.4rem;padding:.1rem .5rem;background:#000a;color:#fff;font-size:.8rem;z-index:1}
.slider span:last-of-type{right:0}
input[type=range]{width:min(100%,30rem);display:block}
@media(prefers-color-scheme:dark){body{background:#14181c;color:#e4e8ec}th,td{border-color:#333b43}}
"""


def comparison(images: dict[str, Tensor], labels: dict[str, Tensor], truth: Tensor, classes, item: int = 1) -> Figure:
    """One column for each method: the image, the error against the first image, and the tissue labels over it.

    :param images: magnitude images (B, H, W); the first is the reference.
    :param labels: class numbers (B, H, W) found in each image.
    :param truth: true class numbers (B, H, W), which are shown as an outline.
    :param classes: names of the classes.
    :param item: which image of the batch to show.
    """
    images = {name: batch[item].numpy() for name, batch in images.items()}
    reference = next(iter(images.values()))
    peak = float(reference.max())
    box = _body(reference)
    figure = Figure(figsize=(3 * len(images), 11.2), layout="constrained")
    axes = figure.subplots(3, len(images))
    for column, (name, image) in zip(axes.T, images.items()):
        found, tissue = labels[name][item].numpy()[box], truth[item].numpy()[box]
        column[0].imshow(image[box], cmap="gray", vmin=0, vmax=peak)
        column[0].set_title(name, fontsize=14)
        column[1].imshow(np.abs(image - reference)[box], cmap="magma", vmin=0, vmax=0.15 * peak)
        column[2].imshow(image[box], cmap="gray", vmin=0, vmax=peak)
        column[2].imshow(found, cmap=TISSUES, vmin=-0.5, vmax=7.5, interpolation="none", alpha=0.75)
        for k in range(1, len(classes)):
            column[2].contour(tissue == k, [0.5], colors="black", linewidths=0.4)
        for axis in column:
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, text in zip(axes[:, 0], ("image", "error, 6.7 times brighter", f"{', '.join(classes[1:])}")):
        axis.set_ylabel(text, fontsize=12)
    return figure


def error_propagation(samples, segmented, image: Tensor, labels: Tensor, item: int = 0, axes=None) -> Figure:
    """How errors of a reconstruction become errors of its segmentation, in five pictures side by side.

    The mean of the posterior samples, its error, the samples' standard deviation in the same colours, the segmentation
    with the true outlines, and the pixels that it gets wrong on the reconstruction's error, which is there so many
    times as large as in the rest of the body.

    :param samples: what :func:`pnp.sample` returns, or images (n, B, C, H, W).
    :param segmented: what :func:`pnp.joint.segment_samples` makes of them.
    :param image: the true images (B, C, H, W).
    :param labels: the true class numbers (B, H, W).
    :param item: which image of the batch to show.
    :param axes: five matplotlib axes to draw in; None for a new figure.
    :raises ValueError: for an image or labels of another shape than the samples.
    """
    drawn = getattr(samples, "x", samples)
    if image.shape != drawn.shape[1:]:
        raise ValueError(f"image: expected the samples' shape {tuple(drawn.shape[1:])}, got {tuple(image.shape)}")
    if labels.shape != segmented.labels.shape[1:]:
        expected = tuple(segmented.labels.shape[1:])
        raise ValueError(f"labels: expected the segmentations' shape {expected}, got {tuple(labels.shape)}")
    if axes is None:
        axes = Figure(figsize=(15, 3.6), layout="constrained").subplots(1, 5)
    truth, mean = magnitude(image)[item].cpu(), magnitude(drawn.mean(0))[item].cpu()
    spread = torch.stack([magnitude(x)[item].cpu() for x in drawn]).std(0)
    error, peak = (mean - truth).abs(), truth.max().item()
    found, tissue = segmented.consensus[item].cpu(), labels[item].cpu()
    wrong, body = found != tissue, truth > 0.05 * peak
    where = "pixels that are wrong" if wrong.any() else "nothing wrong"
    if (wrong & body).any() and (~wrong & body).any():
        where = f"wrong: error {error[wrong & body].mean() / error[~wrong & body].mean():.1f} x elsewhere"
    panels = (
        ("mean of the samples", mean, {"cmap": "gray", "vmax": peak}),
        ("its error", error, {"cmap": "magma", "vmax": 0.15 * peak}),
        ("standard deviation", spread, {"cmap": "magma", "vmax": 0.15 * peak}),
        ("mask, true outlines", mean, {"cmap": "gray", "vmax": peak}),
        (where, error, {"cmap": "gray", "vmax": 0.15 * peak}),
    )
    box = _body(truth.numpy())
    found, tissue, wrong = (part.numpy()[box] for part in (found, tissue, wrong))
    for axis, (title, picture, colours) in zip(axes, panels):
        axis.imshow(picture.numpy()[box], vmin=0, **colours)
        axis.set_title(title)
        axis.axis("off")
    axes[3].imshow(found, cmap=TISSUES, vmin=-0.5, vmax=7.5, interpolation="none", alpha=0.75)
    for k in range(1, len(segmented.classes)):
        axes[3].contour(tissue == k, [0.5], colors="black", linewidths=0.4)
    axes[4].imshow(np.where(wrong, 1.0, np.nan), cmap=ListedColormap(["#e5484d"]), alpha=0.6, interpolation="none")
    return axes[0].figure


def _body(image: np.ndarray) -> tuple[slice, slice]:
    """The part of an image that is not dark, and a margin."""
    rows, columns = np.nonzero(image >= 0.02 * image.max())
    return slice(max(rows.min() - 6, 0), rows.max() + 7), slice(max(columns.min() - 6, 0), columns.max() + 7)


def write_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG; an existing file is replaced only once the new one is complete."""
    return replace(path, _png(figure))


def write(path: str | Path, *, title: str, introduction: str, rows: list[dict], figure: Figure, sliders=()) -> Path:
    """Write a page with a table, a figure and before/after sliders; everything is inside the one file.

    :param rows: table rows of equal keys; None is shown as a dash.
    :param sliders: (name before, name after, image before (H, W), image after (H, W)).
    """
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width,initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>",
        f"<h1>{html.escape(title)}</h1><p>{html.escape(introduction)}</p>",
        table_html(rows),
    ]
    for before, after, first, second in sliders:
        peak = float(torch.quantile(second.flatten(), 0.999))
        parts.append(
            f"<h2>{html.escape(before)} and {html.escape(after)}</h2><div class=slider>"
            f'<img alt="{html.escape(before)}" src="{_picture(first, peak)}">'
            f'<img alt="{html.escape(after)}" src="{_picture(second, peak)}">'
            f"<span>{html.escape(before)}</span><span>{html.escape(after)}</span></div>"
            f'<input type=range value=50 aria-label="share of {html.escape(before)}" '
            "oninput=\"this.previousElementSibling.style.setProperty('--at',this.value+'%')\">"
        )
    parts.append(f'<h2>All images</h2><img alt="comparison" src="{_embedded(_png(figure))}">')
    return replace(path, "\n".join(parts).encode())


def table_html(rows: list[dict]) -> str:
    heads = "".join(f"<th>{html.escape(_heading(key))}</th>" for key in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell(k, v))}</td>" for k, v in row.items()) + "</tr>" for row in rows
    )
    return f"<table><tr>{heads}</tr>{body}</table>"


def table_text(rows: list[dict]) -> str:
    """The rows as an aligned text table."""
    cells = [[_heading(key) for key in rows[0]]] + [[cell(key, value) for key, value in row.items()] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths)))
        for line in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def cell(key: str, value) -> str:
    """A table's cell: figures with the digits that mean something."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if key in ("psnr", "seconds") else f"{value:.4f}" if key == "ssim" else f"{value:.3f}"


def _heading(key: str) -> str:
    return {"psnr": "PSNR, dB", "ssim": "SSIM", "seconds": "s a slice", "method": "method"}.get(
        key, key.replace("dice", "Dice")
    )


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()


def _picture(image: Tensor, peak: float) -> str:
    from matplotlib import image as pictures

    buffer = io.BytesIO()
    pictures.imsave(buffer, image.numpy(), cmap="gray", vmin=0, vmax=peak, format="png")
    return _embedded(buffer.getvalue())


def _embedded(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
