"""Draw docs/images/{completions,circuit}.png from a finished run: python docs/make_pictures.py [profile].

Completions: input, truth, then DDNM, CoPaint and Tiramisu, for the masks left and expand1; rows: the first two test
images of each dataset. Circuit: the sheet that train_circuit drew of the first dataset, with headings.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pipeline.data.shards import read_split
from pipeline.experiment.cells import unpack
from pipeline.experiment.layout import Layout
from pipeline.experiment.params import load_params

ZOOM, GAP, TOP, ROWS = 3, 6, 16, 2
SHOWN = ("ddnm", "copaint", "tiramisu")


def tile(image: np.ndarray) -> Image.Image:
    """Enlarge by whole pixels."""
    side = image.shape[0] * ZOOM
    return Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)


def main(profile: str) -> None:
    """Draw and write."""
    params, layout = load_params(), Layout(Path.cwd(), profile)
    columns = [(mask, name) for mask in ("left", "expand1") for name in ("input", "truth", *SHOWN)]
    cell = params.image_size * ZOOM + GAP
    sheet = Image.new("RGB", (len(columns) * cell, TOP + len(params.sweep.datasets) * ROWS * cell), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (mask, name) in enumerate(columns):
        draw.text((column * cell + 2, 2), f"{mask}: {name}" if name == "input" else name, fill="black")
        for number, dataset in enumerate(params.sweep.datasets):
            truth = read_split(layout.data(dataset), "test", layout.cache).images
            for row in range(ROWS):
                method = name if name in SHOWN else SHOWN[0]
                done = unpack(layout.inpaint(dataset, method) / f"{mask}.npz")
                known = done.known[row][..., None]
                filling = {"input": np.full_like(truth[row], 200), "truth": truth[row]}.get(name, done.samples[row, 0])
                picture = np.where(known, truth[row], filling)
                sheet.paste(tile(picture), (column * cell, TOP + (number * ROWS + row) * cell))
    target = Path("docs/images/completions.png")
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target)
    circuit(layout, params.sweep.datasets[0])


def circuit(layout: Layout, dataset: str) -> None:
    """Put headings over the circuit's completions."""
    sheet = Image.open(layout.circuit(dataset) / "completions.png")
    made = Image.new("RGB", (sheet.width, sheet.height + TOP), "white")
    made.paste(sheet, (0, TOP))
    draw, width = ImageDraw.Draw(made), sheet.width / 8
    for column, heading in ((0, "seen"), (1, "drawn together"), (4, "drawn token by token"), (7, "truth")):
        draw.text((column * width + 2, 2), heading, fill="black")
    made.save("docs/images/circuit.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "embedded")
