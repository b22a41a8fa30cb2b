"""Scores, cells and records as the report reads them: damaged, incomplete, and of other runs."""

from functools import partial
from pathlib import Path

from fuzz.cases import Case
from fuzz.damage import bytes_cases, json_cases, overwrite
from fuzz.world import COLUMNS, cell_record, settings, training_record
from pipeline.experiment.report_inputs import read_findings
from pipeline.experiment.tables import KEYS, collect

RUNS = "runs/smoke"
NEEDED = (
    "params.yaml",
    *(
        f"{RUNS}/{name}"
        for name in (
            "scores",
            "inpaint",
            "lpips",
            "tokens/faces/tokens.json",
            "trunk/trunk.json",
            "data/faces/manifest.json",
            *(
                f"{model}/faces/{file}"
                for model in ("vqgan", "ddpm", "circuit")
                for file in ("record.json", "curve.jsonl", "samples.png")
            ),
        )
    ),
)
SCORES, CELLS = f"{RUNS}/scores/faces", f"{RUNS}/inpaint/faces/ddnm"
HEAD = ",".join((*KEYS, *COLUMNS))
LINE = "faces,left,ddnm,faces-test-000000,0" + ",0.5" * len(COLUMNS)


def read(root):
    """What the report reads, up to the cubes of its tables."""
    sweep = settings().sweep.model_dump()
    found = read_findings(Path(RUNS), sweep)
    for dataset, rows in found.scores.items():
        collect(rows, found.metrics, dataset=dataset, masks=found.masks, methods=found.methods)
    for mask in found.masks:
        found.arrays("faces", "ddnm", mask, 1)


def with_line(change):
    def spoil(root):
        path = root / SCORES / "scores.csv"
        path.write_text(change(path.read_text()))

    return spoil


TABLES = {
    "no-rows": lambda text: f"{HEAD}\n",
    "no-header": lambda text: text.partition("\n")[2],
    "other-header": lambda text: text.replace("image_id", "image", 1),
    "column-gone": lambda text: "\n".join(
        line.rpartition(",")[0].rpartition(",")[0] for line in text.splitlines()
    ).replace("lpips_domain,", "x,", 1),
    "column-twice": lambda text: "\n".join(f"{line},{line.rpartition(',')[2]}" for line in text.splitlines()),
    "column-of-another-metric": lambda text: text.replace("psnr,", "lpips,", 1),
    "column-nobody-knows": lambda text: text.replace("psnr,", "beauty,", 1),
    "value-too-few": lambda text: text.rstrip("\n").rpartition(",")[0],
    "value-too-many": lambda text: text.rstrip("\n") + ",1\n",
    "value-a-word": lambda text: text.rstrip("\n")[:-3] + "good\n",
    "value-nan": lambda text: text.rstrip("\n")[:-3] + "nan\n",
    "value-infinite": lambda text: text.rstrip("\n")[:-3] + "inf\n",
    "value-empty": lambda text: text.rstrip("\n")[:-3] + "\n",
    "row-twice": lambda text: text + text.splitlines()[-1] + "\n",
    "row-gone": lambda text: "\n".join(text.splitlines()[:-1]) + "\n",
    "mask-gone": lambda text: "\n".join(line for line in text.splitlines() if ",left," not in line) + "\n",
    "open-quote": lambda text: text.replace("faces-test", '"faces-test', 1),
    "zero-byte": lambda text: text.replace("faces-test", "faces\0test", 1),
    "field-of-a-megabyte": lambda text: text.replace("faces-test", "x" * 10**6, 1),
    "other-separator": lambda text: text.replace(",", ";"),
}
"""Damage of scores.csv."""


def cases(rng):
    """All of them."""
    case = partial(Case, kind="records", parts=NEEDED, read=read)
    yield case(name="whole", spoil=lambda root: None, expect="accepted")
    yield from bytes_cases(case, f"{SCORES}/scores.csv", rng, expect="either", says=("",))
    for name, change in TABLES.items():
        words = ("faces",) if name in ("zero-byte", "row-twice", "row-gone", "mask-gone") else ("scores.csv",)
        yield case(name=f"scores.csv-{name}", spoil=with_line(change), says=words)
    cell = {"mask": "left", "method": "ddnm", "fingerprint": "x"}
    score = {"schema": 1, "lpips": {"column": "lpips_domain", "trunk_sha256": "0", "reason": "x"}, "cells": [cell]}
    yield from json_cases(case, f"{SCORES}/score.json", score, ignored=("schema",))
    loose = [f"cells.0.{name}" for name in ("schema", "kind", "profile", "seed", "image_size", "inputs", "dataset")]
    loose += [f"cells.0.measured.{name}" for name in ("started", "hardware", "versions", "seconds")]
    loose += ["cells.0.params.steps", "cells.0.method", "cells.0.image_ids.0", "cells.0.params"]
    loose += ["cells.0.evaluations.circuit", "cells.0.evaluations.codec"]
    yield from json_cases(case, f"{CELLS}/cells.json", {"cells": [cell_record("left")]}, ignored=loose)
    loose = ["schema", "kind", "dataset", "fingerprint", "profile", "params", "inputs", "metrics", "artifacts.0"]
    loose += [f"measured.{name}" for name in ("started", "hardware", "versions")]
    for model in ("vqgan", "circuit"):
        yield from json_cases(
            partial(case, kind=f"records of {model}"),
            f"{RUNS}/{model}/faces/record.json",
            training_record(f"train_{model}"),
            ignored=loose,
        )
    for file in ("lpips/lpips.json", "tokens/faces/tokens.json", "trunk/trunk.json", "data/faces/manifest.json"):
        for damaged in json_cases(case, f"{RUNS}/{file}", {}):
            if "object" not in damaged.name:
                yield damaged
    for name in (
        "inpaint/faces/ddnm/left.npz",
        "inpaint/faces/ddnm/cells.json",
        "scores/faces/scores.csv",
        "vqgan/faces/record.json",
        "ddpm/faces/samples.png",
    ):
        yield case(
            name=f"gone-{name}", spoil=lambda root, name=name: (root / RUNS / name).unlink(), says=(Path(name).name,)
        )
    yield from bytes_cases(partial(case, kind="records' cells"), f"{CELLS}/left.npz", rng, expect="either")
    for name, text in {
        "word": "x\n",
        "list": "[]\n",
        "no-metrics": '{"step": 1}\n',
        "metrics-list": '{"step": 1, "seconds": 1, "metrics": []}\n',
        "step-a-word": '{"step": "x", "seconds": 1, "metrics": {"a": 1}}\n',
        "value-none": '{"step": 1, "seconds": 1, "metrics": {"a": null}}\n',
        "deep": "[" * 100_000,
        "latin-1": "\udce9\n",
        "long-number": '{"step": ' + "9" * 6000 + "}\n",
        "number-beyond-floats": '{"step": ' + "9" * 600 + ', "seconds": 1, "metrics": {"a": 1}}\n',
    }.items():
        yield case(
            name=f"curve.jsonl-{name}",
            spoil=partial(overwrite, f"{RUNS}/vqgan/faces/curve.jsonl", text.encode(errors="surrogateescape")),
            says=("curve.jsonl",),
        )
