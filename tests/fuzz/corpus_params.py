"""Parameters: files that are no YAML, keys nobody knows, values that cannot be, profiles and overrides."""

import copy
import random

from fuzz.cases import Case
from fuzz.damage import BYTES, ODD, changed, gone, places, put
from fuzz.world import ROOT
from pipeline.experiment.params import check_params, load_params
from pipeline.experiment.profiles import apply, parse_settings, pointed_at, resolve, resolved

KIND, FILE, PROFILE = "params", "params.yaml", "configs/profiles/smoke.yaml"
OVERLAY = ("configs/base.yaml", PROFILE)
VALUES = resolved(ROOT, "embedded")
TEXT = (ROOT / "configs" / "base.yaml").read_text()
LAUGHS = "\n".join(f"l{k}: &l{k} [{', '.join([f'*l{k - 1}'] * 9)}]" for k in range(1, 30))

TEXTS = {
    "missing": None,
    "empty": b"",
    "comment-only": b"# nothing\n",
    "a-list": b"- profile\n- seed\n",
    "a-word": b"embedded\n",
    "a-number": b"17\n",
    "zero-bytes": bytes(64),
    "noise": random.Random(0).randbytes(400),
    "latin-1": TEXT.replace("profile: embedded", "profile: caf\u00e9").encode("latin-1"),
    "tab-indented": b"profile: embedded\nsweep:\n\timages: 4\n",
    "open-quote": b'profile: "embedded\nseed: 1\n',
    "open-list": b"sweep: [1, 2\nseed: 1\n",
    "two-colons": b"profile: embedded: yes\n",
    "two-documents": b"profile: embedded\n---\nprofile: smoke\n",
    "same-key-twice": TEXT.replace("seed: 2401", "seed: 2401\nseed: 2402", 1).encode(),
    "same-section-twice": (TEXT + "sweep: {images: 4}\n").encode(),
    "unknown-alias": b"profile: *nobody\n",
    "alias-of-itself": b"profile: &a [*a]\n",
    "section-in-itself": b"sweep: &s\n  datasets: *s\n",
    "a-billion-laughs": f"l0: &l0 [lol, lol]\n{LAUGHS}\n".encode(),
    "merged-laughs": b"a: &a {x: 1}\n" + b"b: {<<: [" + b"*a, " * 3000 + b"*a]}\n",
    "nested-2000-deep": b"profile: " + b"[" * 2_000,
    "mappings-2000-deep": b"a: " + b"{a: " * 2_000,
    "indented-3000-deep": b"".join(b" " * k + b"a:\n" for k in range(3000)),
    "number-of-6000-digits": b"seed: " + b"9" * 6000 + b"\n",
    "python-object": b"profile: !!python/object/apply:os.system ['touch executed']\n",
    "unknown-tag": b"profile: !secret x\n",
    "binary": b"profile: !!binary aGVsbG8=\n",
    "broken-binary": b"profile: !!binary '***'\n",
    "broken-timestamp": b"profile: !!timestamp 2020-99-99\n",
    "broken-int": b"seed: !!int x\n",
    "broken-float": b"seed: !!float x\n",
    "broken-bool": b"seed: !!bool x\n",
    "date": b"profile: 2020-01-01\n",
    "set": b"profile: !!set {a, b}\n",
    "pairs": b"profile: !!pairs [a: 1]\n",
    "list-as-key": b"? [a, b]\n: 1\n",
    "mapping-as-key": b"? {a: b}\n: 1\n",
    "yaml-1.1": b"%YAML 1.1\n---\nprofile: embedded\n",
    "yaml-9.9": b"%YAML 9.9\n---\nprofile: embedded\n",
    "lone-surrogate": b'profile: "\\ud800"\n',
    "bell": b"profile: \x07\n",
    "html": b"<html><body>Not found</body></html>",
    "json-cut": b'{"profile": "embedded", "seed": ',
}
"""Whole files; the sentence must name the file."""

OPEN = ("methods", "steered", "mask_files", "datasets")
"""Sections whose entries may be left out."""

KEYS = {
    "number": 1,
    "null": None,
    "true": True,
    "fraction": 0.5,
}

SENTENCES = {
    "sede": ({"sede": 1}, "sede"),
    "profile-of-nobody": ({"profile": "../embedded"}, "profile"),
    "profile-upper": ({"profile": "Embedded"}, "profile"),
    "profile-long": ({"profile": "x" * 300}, "profile"),
    "profile-newline": ({"profile": "embedded\n"}, "profile"),
    "dataset-outside": ({"datasets": {"../../x": VALUES["datasets"]["faces"]}}, "datasets"),
    "dataset-absolute": ({"datasets": {"/tmp": VALUES["datasets"]["faces"]}}, "datasets"),
    "dataset-newline": ({"datasets": {"a\nb": VALUES["datasets"]["faces"]}}, "datasets"),
    "dataset-long": ({"datasets": {"x" * 300: VALUES["datasets"]["faces"]}, "sweep.datasets": ["x" * 300]}, "datasets"),
    "dataset-empty": ({"datasets": {"": VALUES["datasets"]["faces"]}}, "datasets"),
    "mask-outside": ({"mask_files": {"../x": "mine"}}, "mask_files"),
    "mask-built-in": ({"mask_files": {"left": "mine"}}, "mask_files"),
    "mask-of-nobody": ({"mask_files": {"mine": "~nobody-has-this-name/x"}}, "mask_files.mine"),
    "mask-zero-byte": ({"mask_files": {"mine": "a\0b"}}, "mask_files.mine"),
    "mask-surrogate": ({"mask_files": {"mine": "a\ud800"}}, "mask_files.mine"),
    "mask-nowhere": ({"mask_files": {"mine": ""}}, "mask_files.mine"),
    "steered-outside": ({"steered": {"../x": {"base": "copaint"}}}, "steered"),
    "folder-of-nobody": (
        {"datasets.faces": {"source": "folder", "path": "~nobody-has-this-name", "val": 1, "test": 1}},
        "datasets.faces.path",
    ),
    "folder-nowhere": (
        {"datasets.faces": {"source": "folder", "path": "", "val": 1, "test": 1}},
        "datasets.faces.path",
    ),
    "shards-zero-byte": (
        {"datasets.faces": {"source": "shards", "train": "a\0b", "val": "b", "test": "c"}},
        "datasets.faces.train",
    ),
    "shards-nothing": (
        {"datasets.faces": {"source": "shards", "train": [], "val": "b", "test": "c"}},
        "datasets.faces.train",
    ),
    "shards-of-nobody": (
        {"datasets.faces": {"source": "shards", "train": "x", "val": ["~nobody-has-this-name/x"], "test": "c"}},
        "datasets.faces.val",
    ),
    "init-outside-braces": ({"vqgan.init": "{dataset}{x}"}, "vqgan.init"),
    "init-of-an-attribute": ({"vqgan.init": "{dataset.__class__}"}, "vqgan.init"),
    "lpips-of-nobody": ({"lpips.path": "~nobody-has-this-name/x.pth"}, "lpips.path"),
    "lpips-zero-byte": ({"lpips.path": "a\0"}, "lpips.path"),
    "seed-huge": ({"seed": 10**30}, "seed"),
    "image-size-huge": (
        {
            "image_size": 2**24,
            "vqgan.network.channels": [32] * 21,
            "ddpm.unet.channels": [32] * 4,
            "ddpm.unet.attention": [],
        },
        "image_size",
    ),
    "images-huge": (
        {"datasets.faces.test": 10**12, "sweep.datasets": ["faces"], "sweep.images": 10**12},
        "sweep.images",
    ),
    "samples-huge": ({"sweep.samples": 10**12}, "sweep.samples"),
    "T-huge": ({"ddpm.schedule.T": 10**10}, "ddpm.schedule.T"),
    "T-none": ({"ddpm.schedule.T": 0}, "ddpm.schedule.T"),
    "codes-huge": ({"vqgan.network.codes": 10**10}, "vqgan.network.codes"),
    "channels-huge": ({"vqgan.network.channels": [32, 32 * 10**9]}, "vqgan.network.channels"),
    "unet-channels-huge": ({"ddpm.unet.channels": [64, 64, 32 * 10**9]}, "ddpm.unet.channels"),
    "states-huge": ({"circuit.model.states": 10**9}, "circuit.model.states"),
    "doublings-huge": ({"circuit.model.doublings": 60}, "circuit.model.doublings"),
    "bootstrap-huge": ({"report.bootstrap": 10**12}, "report.bootstrap"),
    "repeats-huge": ({"methods.repaint.repeats": 10**12}, "methods.repaint.repeats"),
    "particles-huge": ({"methods.resampling.particles": 10**12}, "methods.resampling.particles"),
    "travel-huge": ({"methods.ddnm.travel_repeats": 10**12}, "methods.ddnm.travel_repeats"),
    "heads-none": ({"transformer.network.heads": 0}, "transformer.network"),
    "heads-that-do-not-divide": ({"transformer.network.heads": 5}, "transformer.network"),
    "width-none": ({"circuit.teacher.network.width": 0}, "circuit.teacher.network"),
    "trunk-none": ({"trunk.images_per_domain": 0}, "trunk.images_per_domain"),
    "until-one": ({"steering.until": 1.0}, "steering.until"),
    "no-mask": ({"sweep.masks": []}, "sweep.masks"),
    "mask-twice": ({"sweep.masks": ["left", "left"]}, "sweep.masks"),
    "method-of-nobody": ({"sweep.methods": ["ddnmm"]}, "sweep.methods"),
    "reference-left-out": ({"report.reference": "daps"}, "report.reference"),
    "base-left-out": ({"steered.tiramisu.base": "nobody"}, "steered.tiramisu.base"),
    "preset-of-nobody": ({"steered.tiramisu_paper.preset": "papre"}, "steered.tiramisu_paper.preset"),
    "warm-none": ({"steered.tiramisu.warm": 0}, "steered.tiramisu.warm"),
    "until-of-steered": ({"steered.tiramisu.until": 2}, "steered.tiramisu"),
    "rate-huge": ({"ddpm.trainer.learning_rate": 1e300}, "ddpm.trainer.learning_rate"),
}
"""Values by dotted name that cannot be, and the field the sentence must name."""

SETS = [
    "x",
    "=3",
    "sweep.images",
    "sweep..images=3",
    ".=3",
    "sweep.images=[",
    "sweep.images=*a",
    "seed=" + "9" * 6000,
    "datasets=3",
    "sweep.images.x=4",
    "nobody=3",
    "seed=!!python/object:os.system x",
    "methods.ddnm=",
    "sweep=&a [*a]",
    "seed=\x07",
    "profile=../x",
    "seed=" + "[" * 1_000,
    "sweep.masks=[left",
    "ddpm.unet=null",
    "sweep.images=.nan",
    "a.b.c.d.e=1",
    "seed={seed: 1}",
]
"""Overrides that are refused."""

VALID = {
    "as-it-is": TEXT.encode(),
    "utf-8-mark": b"\xef\xbb\xbf" + TEXT.encode(),
    "windows-lines": TEXT.replace("\n", "\r\n").encode(),
    "utf-16": TEXT.encode("utf-16"),
    "anchor-and-alias": TEXT.replace("masks: [left, top", "masks: &m [left, top", 1).encode(),
}
"""Files that may look odd, and are right."""


def text_case(name, content, **more):
    """A params.yaml with this content."""

    def spoil(root):
        if content is not None:
            (root / FILE).write_bytes(content)

    return Case(kind=KIND, name=f"text-{name}", parts=(), spoil=spoil, read=lambda root: load_params(FILE), **more)


def use(params):
    """Build what the stages build from parameters, as far as it costs nothing."""
    params.ddpm.schedule.build()
    for name in (*params.methods, *params.steered):
        method = params.method(name)
        method.moves(), method.nfe(), method.nbe()


def value_case(name, values, field, **more):
    """Parsed parameters."""

    def read(root):
        use(check_params(values))

    return Case(kind=KIND, name=name, parts=(), spoil=lambda root: None, read=read, says=(FILE, field), **more)


def edited(edits):
    values = copy.deepcopy(VALUES)
    for name, value in edits.items():
        *path, last = name.split(".")
        block = values
        for part in path:
            block = block[part]
        block[last] = value
    return values


def value_cases(rng):
    """Each place of the parameters gone, or holding something odd."""
    for place in places(VALUES):
        name, word = ".".join(map(str, place)), rng.choice(list(ODD))
        field = ".".join(str(part) for part in place[:2] if not isinstance(part, int))
        values = changed(VALUES, place, put(ODD[word]))
        yield value_case(f"value-{name}-{word}", values, field, expect="either", generated=True)
        if isinstance(place[-1], str) and len(place) < 3 and place[0] not in OPEN:
            yield value_case(f"gone-{name}", changed(VALUES, place, gone), place[-1], generated=True)


def profile_cases():
    """Overlays and overrides."""
    for name, damage in BYTES.items():
        if name not in ("twice", "appended", "one-bit", "last-byte-gone", "first-byte-gone", "hole", "one-byte"):
            yield Case(
                kind=KIND,
                name=f"profile-{name}",
                parts=OVERLAY,
                spoil=lambda root, damage=damage: (root / PROFILE).write_bytes(
                    damage((root / PROFILE).read_bytes(), random.Random(0))
                ),
                read=lambda root: resolve(root, "smoke"),
                expect="either",
            )
    texts = {
        "base-is-noise": ("configs/base.yaml", b"\x00\x01", "base.yaml"),
        "base-is-a-list": ("configs/base.yaml", b"- x\n", "base.yaml"),
        "base-is-gone": ("configs/base.yaml", None, "base.yaml"),
        "base-lacks-the-profile": ("configs/base.yaml", b"seed: 1\n", "profile"),
        "of-another-name": (PROFILE, b"profile: embedded\n", "smoke.yaml"),
        "of-no-name": (PROFILE, b"seed: 3\n", "smoke.yaml"),
        "unknown-key": (PROFILE, b"profile: smoke\nsede: 3\n", "sede"),
        "section-as-a-number": (PROFILE, b"profile: smoke\nsweep: 3\n", "sweep"),
        "section-in-itself": (PROFILE, b"profile: smoke\nsteered: &a {x: *a}\n", "steered"),
        "number-as-key": (PROFILE, b"profile: smoke\n3: x\n", "3"),
    }
    for name, (path, content, field) in texts.items():

        def spoil(root, path=path, content=content):
            if content is None:
                (root / path).unlink()
            else:
                (root / path).write_bytes(content)

        yield Case(
            kind=KIND,
            name=f"profile-{name}",
            parts=OVERLAY,
            spoil=spoil,
            read=lambda root: resolve(root, "smoke"),
            says=(field,),
        )
    for setting in SETS:
        yield Case(
            kind=KIND,
            name=f"set-{setting[:20]!r}",
            parts=(*OVERLAY, FILE),
            spoil=lambda root: None,
            read=lambda root, setting=setting: apply(root, "smoke", parse_settings([setting]), force=True),
            says=(setting.partition("=")[0].partition(".")[0],),
        )
    for name, read, words in (
        ("overlay-of-nobody", lambda root: resolve(root, "smokee"), ("smokee", "'smoke'")),
        ("overlay-outside", lambda root: resolve(root, "../base"), ("../base",)),
        ("data-for-nobody", lambda root: pointed_at(root, "nobody", "x"), ("nobody",)),
        ("data-where-none-is-read", lambda root: pointed_at(root, "smoke", "x"), ("smoke",)),
        ("own-edits", lambda root: apply(root, "smoke"), (FILE,)),
    ):
        yield Case(kind=KIND, name=name, parts=(*OVERLAY, FILE), spoil=lambda root: None, read=read, says=words)
    for name, content in (("latin-1", b"profile: caf\xe9\n"), ("zero-bytes", bytes(20))):
        yield Case(
            kind=KIND,
            name=f"own-{name}",
            parts=OVERLAY,
            spoil=lambda root, content=content: (root / FILE).write_bytes(content),
            read=lambda root: apply(root, "smoke"),
            says=(FILE,),
        )
    yield Case(
        kind=KIND,
        name="own-is-a-folder",
        parts=OVERLAY,
        spoil=lambda root: (root / FILE).mkdir(),
        read=lambda root: apply(root, "smoke"),
        says=(FILE,),
    )


def cases(rng):
    """All of them."""
    for name, content in TEXTS.items():
        yield text_case(name, content, says=(FILE,))
    yield Case(
        kind=KIND,
        name="text-folder",
        parts=(),
        spoil=lambda root: (root / FILE).mkdir(),
        read=lambda root: load_params(FILE),
        says=(FILE,),
    )
    for name, content in VALID.items():
        yield text_case(name, content, expect="accepted")
    for name, key in KEYS.items():
        yield value_case(f"key-{name}", {**VALUES, key: 3}, repr(key))
        yield value_case(
            f"key-inside-{name}",
            changed(VALUES, ("methods", "ddnm", "steps"), lambda h, k, key=key: h.update({key: 1})),
            "methods.ddnm",
        )
    for name, (edits, field) in SENTENCES.items():
        yield value_case(name, edited(edits), field)
    yield from value_cases(rng)
    yield from profile_cases()
