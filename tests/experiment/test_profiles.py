"""Profiles: overlays that change what they name, keep the rest, and never lose somebody's edits."""

import json
import re
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.errors import ConfigError
from pipeline.experiment.params import load_params, read_yaml
from pipeline.experiment.profiles import apply, merge, names, parse_settings, pointed_at, resolve, resolved

ROOT = Path(__file__).parents[2]


def parse(text):
    return YAML(typ="safe", pure=True).load(text)


@pytest.fixture
def root(tmp_path):
    """A repository with the base, the default profile, and one that overrides a few things."""
    (tmp_path / "configs" / "profiles").mkdir(parents=True)
    shutil.copy(ROOT / "configs" / "base.yaml", tmp_path / "configs")
    add(tmp_path, "embedded", "profile: embedded\n")
    add(tmp_path, "other", "profile: other\nseed: 7\nsweep: {images: 3, masks: [top]}\nddpm: {trainer: {steps: 40}}\n")
    return tmp_path


def add(root, name, text):
    (root / "configs" / "profiles" / f"{name}.yaml").write_text(text)


def dotted(values, place=()):
    """Every leaf of a mapping by its dotted name."""
    if not isinstance(values, dict):
        return {".".join(place): values}
    return {name: leaf for key, value in values.items() for name, leaf in dotted(value, (*place, key)).items()}


def changes(root, profile):
    """Leaves of the base and of a profile that differ."""
    before, after = dotted(read_yaml(root / "configs" / "base.yaml")), dotted(resolved(root, profile))
    return {key: after.get(key) for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


# --- merging ---


def test_only_what_an_overlay_names_changes(root):
    assert changes(root, "embedded") == {}
    assert changes(root, "other") == {
        "profile": "other",
        "seed": 7,
        "sweep.images": 3,
        "sweep.masks": ["top"],
        "ddpm.trainer.steps": 40,
    }


def test_merging_goes_down_and_replaces_lists_and_chosen_names():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": {"e": {"f": 1, "g": 2}}, "datasets": {"x": {"n": 1}}, "mask_files": {}}
    merge(base, {"a": {"c": [3]}, "d": {"e": {"g": 5}}, "datasets": {"y": {"n": 2}}, "mask_files": {"m": "folder"}})
    assert base == {
        "a": {"b": 1, "c": [3]},
        "d": {"e": {"f": 1, "g": 5}},
        "datasets": {"y": {"n": 2}},
        "mask_files": {"m": "folder"},
    }


def test_steered_rows_may_be_added_and_changed(root):
    rows = "steered:\n  early: {base: copaint, until: 0.9}\n  steered_ddnm: {until: 0.3}\n"
    add(root, "mine", f"profile: mine\n{rows}sweep: {{steered: [early, tiramisu]}}\n")
    values = resolved(root, "mine")["steered"]
    assert values["early"] == {"base": "copaint", "until": 0.9}
    assert values["steered_ddnm"] == {"base": "ddnm", "until": 0.3}
    assert values["tiramisu"] == resolved(root, "embedded")["steered"]["tiramisu"]
    set_by_name = parse(resolve(root, "embedded", {"steered.mine": {"base": "ddnm"}}))
    assert set_by_name["steered"]["mine"] == {"base": "ddnm"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("tiramisuu: {until: 0.9}", r"steered\.tiramisuu\.base: expected the name of a block"),
        ("tiramisu: {untill: 0.9}", r"steered\.tiramisu\.untill: unknown parameter; did you mean 'until'"),
        ("tiramisu: {until: 1.5}", r"steered\.tiramisu.*until must be between 0 and 1"),
    ],
)
def test_odd_steered_rows_are_refused(root, row, said):
    add(root, "odd", f"profile: odd\nsteered: {{{row}}}\n")
    with pytest.raises(ConfigError, match=said):
        resolved(root, "odd")


def test_datasets_are_replaced_as_a_whole(root):
    block = "{source: folder, path: p, val: 1, test: 12}"
    add(root, "own", f"profile: own\ndatasets:\n  photos: {block}\nsweep: {{datasets: [photos]}}\n")
    assert list(resolved(root, "own")["datasets"]) == ["photos"]


@pytest.mark.parametrize(
    ("overlay", "key", "nearest"),
    [
        ("sede: 1", "sede", "seed"),
        ("sweep: {image: 3}", "sweep.image", "images"),
        ("ddpm: {trainer: {step: 3}}", "ddpm.trainer.step", "steps"),
        ("methods: {ddnm: {ets: 0.1}}", "methods.ddnm.ets", "eta"),
        ("7: 1", "7", ""),
    ],
)
def test_an_unknown_key_is_refused_by_its_full_name(root, overlay, key, nearest):
    add(root, "own", f"profile: own\n{overlay}\n")
    with pytest.raises(ConfigError) as caught:
        resolve(root, "own")
    message = str(caught.value)
    assert message.startswith(f"{key}: no such parameter")
    assert f"'{nearest}'" in message or not nearest
    assert "\n" not in message


@pytest.mark.parametrize(
    ("overlay", "words"),
    [
        ("seed: x", "profile own: seed"),
        ("sweep: null", "profile own: sweep"),
        ("sweep: 3", "profile own: sweep"),
        ("sweep: {images: 0}", "profile own: sweep.images"),
        ("image_size: 64", "profile own: vqgan.network.channels"),
    ],
)
def test_an_invalid_result_is_refused_with_the_profile_s_name(root, overlay, words):
    add(root, "own", f"profile: own\n{overlay}\n")
    with pytest.raises(ConfigError, match=words):
        resolve(root, "own")


def test_a_profile_must_carry_its_own_name(root):
    """A copied profile that kept the old name would write into the old profile's results."""
    add(root, "copied", "profile: embedded\nseed: 3\n")
    with pytest.raises(ConfigError, match=r"copied.*profile: copied"):
        resolve(root, "copied")


def test_an_empty_profile_is_refused(root):
    add(root, "own", "# nothing yet\n")
    with pytest.raises(ConfigError, match=r"own\.yaml: expected a mapping"):
        resolve(root, "own")


def test_an_unknown_profile_names_the_nearest_or_all(root):
    assert names(root) == ["embedded", "other"]
    with pytest.raises(ConfigError, match="'embeded'; did you mean 'embedded'"):
        resolve(root, "embeded")
    with pytest.raises(ConfigError, match="there are embedded, other"):
        resolve(root, "gpu")


# --- text ---


def test_comments_and_order_of_the_base_are_kept(root):
    base, text = (root / "configs" / "base.yaml").read_text(), resolve(root, "other")
    comments = [line.partition("# ")[2] for line in base.splitlines() if "# " in line]
    assert len(comments) > 20
    assert [comment for comment in comments if comment not in text] == []
    assert list(dotted(parse(text))) == list(dotted(parse(base)))


def test_null_stays_a_word(root):
    """`init:` followed by nothing reads like a mistake."""
    add(root, "own", "profile: own\nddpm: {init: null}\n")
    lines = [line.strip() for line in resolve(root, "own").splitlines()]
    assert "init: null" in lines
    assert any(line.startswith("path: null #") for line in lines)
    assert not [line for line in lines if re.match(r"(init|path):\s*(#|$)", line)]


def test_resolving_gives_the_same_text_every_time(root):
    assert resolve(root, "other") == resolve(root, "other")


@pytest.mark.parametrize("profile", names(ROOT))
def test_the_project_s_profiles_resolve_and_have_what_they_ask_for(profile):
    overlay, values = read_yaml(ROOT / "configs" / "profiles" / f"{profile}.yaml"), resolved(ROOT, profile)
    found = dotted(values)
    assert values["profile"] == profile
    for key, value in dotted(overlay).items():
        assert found[key] == value


def test_a_copy_of_own_with_what_the_readme_changes_resolves(root):
    """The block of the README, put into a copy of the profile as a reader would."""
    [block] = re.findall(r"```yaml\n(profile: mine\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    copied, changed = read_yaml(ROOT / "configs" / "profiles" / "own.yaml"), parse(block)
    sections = {name: {**copied.get(name, {}), **changed[name]} for name in ("datasets", "mask_files", "sweep")}
    (root / "configs" / "profiles" / "mine.yaml").write_text(json.dumps(copied | changed | sections))
    values = parse(resolve(root, "mine"))
    assert values["datasets"]["mine"]["path"] == "/pictures/mine"
    assert values["sweep"]["masks"] == ["left", "scribble"]
    assert values["ddpm"]["trainer"]["steps"] == copied["ddpm"]["trainer"]["steps"]


# --- settings from the command line ---


def test_settings_override_the_profile_by_dotted_name(root):
    values = parse(resolve(root, "other", {"sweep.images": 5, "ddpm.trainer.steps": 60, "seed": 1}))
    assert (values["sweep"]["images"], values["ddpm"]["trainer"]["steps"], values["seed"]) == (5, 60, 1)
    assert values["sweep"]["masks"] == ["top"]


def test_a_setting_inside_a_dataset_changes_that_only(root):
    values, before = parse(resolve(root, "embedded", {"datasets.rooms.test": 20})), resolved(root, "embedded")
    assert values["datasets"]["rooms"] == {**before["datasets"]["rooms"], "test": 20}
    assert values["datasets"]["faces"] == before["datasets"]["faces"]


@pytest.mark.parametrize("name", ["sweep.image", "nothing", "sweep.images.more", "seed.x"])
def test_an_unknown_setting_is_refused(root, name):
    with pytest.raises(ConfigError, match=name.split(".")[0]):
        resolve(root, "embedded", {name: 3})


def test_settings_are_read_as_yaml():
    given = ["sweep.images=4", "lpips.download=false", "vqgan.init=null", "sweep.masks=[left, top]", "a=b=c", "x=1e-4"]
    assert parse_settings(given) == {
        "sweep.images": 4,
        "lpips.download": False,
        "vqgan.init": None,
        "sweep.masks": ["left", "top"],
        "a": "b=c",
        "x": 1e-4,
    }
    assert parse_settings([]) == {}


@pytest.mark.parametrize("setting", ["sweep.images", "sweep.images 4", "sweep.masks=[left", "seed=*x"])
def test_a_malformed_setting_is_refused_as_it_was_given(setting):
    with pytest.raises(ConfigError) as caught:
        parse_settings([setting])
    assert setting in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_are_looked_for_where_one_says(root):
    add(
        root,
        "photos",
        "profile: photos\ndatasets:\n"
        "  a: {source: shards, train: data/real/a/*.tar, val: [data/real/v.tar, data/realistic/v.tar], test: /x.tar}\n"
        "  b: {source: folder, path: data/real, val: 1, test: 12}\n"
        "sweep: {datasets: [b]}\n",
    )
    overrides = pointed_at(root, "photos", "/disk/pictures/")
    values = parse(resolve(root, "photos", overrides))
    assert values["datasets"]["a"]["train"] == "/disk/pictures/a/*.tar"
    assert values["datasets"]["a"]["val"] == ["/disk/pictures/v.tar", "data/realistic/v.tar"]
    assert values["datasets"]["a"]["test"] == "/x.tar"
    assert values["datasets"]["b"]["path"] == "/disk/pictures"


def test_data_for_a_profile_that_reads_none_are_refused(root):
    with pytest.raises(ConfigError, match="'embedded' reads nothing below data/real"):
        pointed_at(root, "embedded", "/disk")


# --- writing params.yaml ---


def test_applying_writes_once_and_can_be_read(root):
    assert apply(root, "other") is True
    assert (root / "params.yaml").read_text() == resolve(root, "other")
    assert load_params(root / "params.yaml").seed == 7
    assert apply(root, "other") is False
    assert [path.name for path in root.iterdir() if path.is_file()] == ["params.yaml"]


def test_one_profile_may_replace_another(root):
    apply(root, "other")
    assert apply(root, "embedded") is True
    assert load_params(root / "params.yaml").profile == "embedded"


def test_edits_of_one_s_own_are_not_lost(root):
    apply(root, "other")
    path = root / "params.yaml"
    edited = path.read_text().replace("seed: 7", "seed: 8 # mine")
    path.write_text(edited)
    for profile in names(root):
        with pytest.raises(ConfigError, match=r"edits of your own.*FORCE=1"):
            apply(root, profile)
        assert path.read_text() == edited
    assert apply(root, "embedded", force=True) is True
    assert load_params(path).seed == 2401


def test_a_broken_profile_does_not_stand_in_the_way_of_others(root):
    apply(root, "other")
    add(root, "broken", "sede: 3\n")
    assert apply(root, "embedded") is True


def test_an_invalid_profile_leaves_params_alone(root):
    apply(root, "other")
    before = (root / "params.yaml").read_text()
    add(root, "broken", "profile: broken\nseed: x\n")
    with pytest.raises(ConfigError):
        apply(root, "broken", force=True)
    assert (root / "params.yaml").read_text() == before
