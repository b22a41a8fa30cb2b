"""The long form of the fuzz suite: the whole corpus, all commands, and valid files mutated at random.

    python tests/fuzz/long.py --inputs 5000 --seed 0

Judges every case of the corpus, then as many mutations as it takes to reach the number of inputs: bits, cuts, splices
and foreign pieces in any file, other values anywhere in JSON, with the hashes made to fit in half of the cases.
Each must be accepted, or refused in one clear sentence, with nothing written. Prints a table by kind of input, and what
is wrong; exits with status 1 if anything is. With --commands, also runs every bad command, in processes of their own.
"""

import argparse
import collections
import contextlib
import importlib
import io
import json
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fuzz import corpus_arrays, corpus_pictures, corpus_records, corpus_shards, corpus_weights  # noqa: E402
from fuzz.cases import Case, run_all  # noqa: E402
from fuzz.damage import BYTES, ODD, overwrite, places  # noqa: E402
from fuzz.test_corpus import CORPORA  # noqa: E402
from fuzz.test_entries import COMMANDS, complaint  # noqa: E402
from fuzz.world import SIZE, make_world  # noqa: E402
from pipeline.circuit.store import load_circuit  # noqa: E402
from pipeline.codec.trunk import load_trunk  # noqa: E402
from pipeline.data.images import load_image  # noqa: E402
from pipeline.data.shards import read_split  # noqa: E402
from pipeline.experiment.cells import unpack  # noqa: E402
from pipeline.experiment.lpips_trunk import read_resolution  # noqa: E402
from pipeline.experiment.params import load_params  # noqa: E402
from pipeline.experiment.tokens import read_tokens  # noqa: E402

CIRCUIT, VQGAN, DDPM, TRUNK = corpus_arrays.CIRCUIT, corpus_weights.VQGAN, corpus_weights.DDPM, corpus_weights.TRUNK
TOKENS, DATA, CELL = corpus_arrays.TOKENS, corpus_shards.DATA, corpus_arrays.CELL
LPIPS = corpus_weights.LPIPS
STEERING = (CIRCUIT, VQGAN, corpus_arrays.STEERING)
RECORDS = corpus_records.NEEDED

TARGETS = [
    ("params", "params.yaml", ("params.yaml",), lambda root: load_params("params.yaml")),
    ("masks", "mine/0.png", ("mine",), corpus_pictures.draw),
    ("pictures", "mine/1.png", ("mine",), lambda root: load_image(Path("mine/1.png"), SIZE)),
    ("datasets", f"{DATA}/manifest.json", (DATA,), lambda root: read_split(Path(DATA), "test", Path("cache"))),
    ("datasets", f"{DATA}/test-000000.tar", (DATA,), lambda root: read_split(Path(DATA), "test", Path("cache"))),
    ("weights", f"{VQGAN}/model.safetensors", (VQGAN,), corpus_weights.read_vqgan),
    ("weights", f"{DDPM}/model.json", (DDPM,), corpus_weights.read_ddpm),
    ("circuits", f"{CIRCUIT}/model.json", (CIRCUIT,), lambda root: load_circuit(Path(CIRCUIT))),
    ("circuits", f"{CIRCUIT}/model.safetensors", (CIRCUIT,), lambda root: load_circuit(Path(CIRCUIT))),
    ("calibrations", f"{corpus_arrays.STEERING}/calibration.json", STEERING, corpus_arrays.prior),
    ("trunk", f"{TRUNK}/trunk.json", (TRUNK,), lambda root: load_trunk(Path(TRUNK))),
    ("trunk", f"{TRUNK}/trunk.safetensors", (TRUNK,), lambda root: load_trunk(Path(TRUNK))),
    ("lpips", f"{LPIPS}/lpips.json", (LPIPS,), lambda root: read_resolution(Path(LPIPS))),
    ("tokens", f"{TOKENS}/train.npz", (TOKENS,), lambda root: read_tokens(Path(TOKENS), "train")),
    ("tokens", f"{TOKENS}/tokens.json", (TOKENS,), lambda root: read_tokens(Path(TOKENS), "train")),
    ("cells", CELL, (CELL,), lambda root: unpack(Path(CELL))),
    ("records", f"{corpus_records.SCORES}/scores.csv", RECORDS, corpus_records.read),
    ("records", f"{corpus_records.SCORES}/score.json", RECORDS, corpus_records.read),
    ("records", f"{corpus_records.CELLS}/cells.json", RECORDS, corpus_records.read),
    ("records", "runs/smoke/vqgan/faces/record.json", RECORDS, corpus_records.read),
    ("records", "runs/smoke/vqgan/faces/curve.jsonl", RECORDS, corpus_records.read),
]  # fmt: skip
"""(kind, file, parts of the world it needs, what reads it)."""

PIECES = [
    b"\0",
    b"\n",
    b"{",
    b"]",
    b'"',
    b"NaN",
    b"-1",
    b"1e999",
    b"9" * 30,
    b"null",
    b"\xff\xfe",
    b"../",
    b"&a",
    b"*a",
    b": ",
]


def mutated(data, rng):
    """Bytes with one to four mutations."""
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randrange(len(data) + 1), rng.choice((1, 4, 64, 1024))
        kind = rng.choice(("damage", "cut out", "put in", "exchange", "copy"))
        if kind == "damage":
            data = BYTES[rng.choice(list(BYTES))](data, rng) if data else b"\0"
        elif kind == "cut out":
            data = data[:place] + data[place + length :]
        elif kind == "copy":
            start = rng.randrange(len(data) + 1)
            data = data[:place] + data[start : start + length] + data[place:]
        else:
            piece = rng.choice((rng.choice(PIECES), rng.randbytes(min(length, 64))))
            data = data[:place] + piece + data[place + (len(piece) if kind == "exchange" else 0) :]
    return data


def rewritten(data, rng):
    """JSON with one to three places gone, odd, or exchanged for another place."""
    value = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        found = list(places(value))
        if not found:
            break
        *way, last = rng.choice(found)
        holder = value
        for key in way:
            holder = holder[key]
        if rng.random() < 0.3:
            del holder[last]
        else:
            holder[last] = rng.choice(
                [*ODD.values(), rng.randint(-9, 10**9), rng.random(), "a\nb", "../x", [[]], 10**400]
            )
    return json.dumps(value).encode()


def mutation(number, seed):
    """One file of the world, mutated; in half of the cases hashes fit."""
    rng = random.Random(f"{seed}/{number}")
    kind, path, parts, read = rng.choice(TARGETS)
    change = rewritten if path.endswith(".json") and rng.random() < 0.7 else mutated

    def spoil(root):
        content = change((root / path).read_bytes(), rng)
        folder, file = str(Path(path).parent), Path(path).name
        if file in ("model.safetensors", "trunk.safetensors") and rng.random() < 0.5:
            record = "model.json" if file == "model.safetensors" else "trunk.json"
            corpus_weights.forge(folder, root, content, file, record)
        elif file.endswith(".tar") and rng.random() < 0.5:
            corpus_shards.edit(root, lambda manifest: None, content)
        elif file == "manifest.json" and change is rewritten:
            corpus_shards.edit(root, lambda manifest: json.loads(content))
        else:
            overwrite(path, content, root)

    return Case(kind=kind, name=f"mutation-{number}-of-{path}", parts=parts, spoil=spoil, read=read, expect="either")


def main(inputs, seed, commands):
    counts = collections.defaultdict(collections.Counter)

    def tell(case, outcome, seconds):
        row = counts[case.kind]
        row.update(inputs=1, refused=outcome.refused, accepted=not outcome.refused, faults=outcome.fault is not None)
        row["slowest"] = max(row["slowest"], seconds)

    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        world, scratch = Path(folder) / "world", Path(folder) / "scratch"
        world.mkdir(), scratch.mkdir()
        with contextlib.redirect_stderr(io.StringIO()):
            make_world(world)
            cases = [
                c for name in CORPORA for c in importlib.import_module(f"fuzz.corpus_{name}").cases(random.Random(seed))
            ]
            cases += [mutation(number, seed) for number in range(max(0, inputs - len(cases)))]
            wrong = run_all(cases, world, scratch, tell)
        for number, name in enumerate(COMMANDS if commands else ()):
            fault = complaint(world, scratch / f"command-{number}", name)
            counts["commands"].update(inputs=1, refused=1, faults=fault is not None)
            wrong += [f"{name}: {fault}"] * (fault is not None)
    show(counts, time.monotonic() - begin)
    print(*wrong, sep="\n")
    sys.exit(1 if wrong else 0)


def show(counts, seconds):
    """A table in Markdown."""
    total = collections.Counter()
    print("| kind | inputs | refused | accepted | faults | slowest |\n|---|---:|---:|---:|---:|---:|")
    for kind, row in sorted(counts.items()):
        numbers = " | ".join(str(row[name]) for name in ("inputs", "refused", "accepted", "faults"))
        print(f"| {kind} | {numbers} | {row['slowest']:.1f} s |")
        total.update({name: value for name, value in row.items() if name != "slowest"})
    print(f"| all | {total['inputs']} | {total['refused']} | {total['accepted']} | {total['faults']} | |")
    print(f"\n{seconds:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=5000, help="in all; the corpus comes first")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--commands", action="store_true", help="run every bad command, too")
    given = parser.parse_args()
    main(given.inputs, given.seed, given.commands)
