"""Every bad input of the corpus is refused in one clear sentence, and writes nothing; every good one is accepted."""

import importlib
import random

import pytest

from fuzz.cases import run_all
from fuzz.world import make_world

CORPORA = ("params", "pictures", "shards", "weights", "arrays", "records")
SHARE = 0.1
"""Of the cases that are made by the hundred; `long.py` judges all of them."""


def chosen(name):
    """The cases of a corpus that the tests judge, the same every time."""
    rng = random.Random(0)
    found = list(importlib.import_module(f"fuzz.corpus_{name}").cases(rng))
    return [case for case in found if not case.generated or rng.random() < SHARE]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    make_world(root)
    return root


@pytest.mark.parametrize("name", CORPORA)
def test_bad_input_is_refused_in_a_sentence(name, world, tmp_path):
    assert run_all(chosen(name), world, tmp_path) == []


def test_the_corpus_is_large_and_has_good_inputs_among_the_bad():
    cases = [case for name in CORPORA for case in chosen(name)]
    assert len({str(case) for case in cases}) == len(cases)
    assert sum(case.expect == "refused" for case in cases) >= 500
    assert sum(case.expect == "accepted" for case in cases) >= 50
