"""What is read from files and the command line gives a value or a UserError, whatever it holds."""

import io
import json

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossdistill import UserError
from crossdistill.backbones.weights_file import groups_of, names_in, read_file
from crossdistill.cache import CacheFormat
from crossdistill.cache.store import read_manifest, write_manifest
from crossdistill.commands.compare import parse_student, parse_variant, split_variants
from crossdistill.config import RunConfig
from crossdistill.config.files import by_dotted_name, from_dict, read_yaml, to_dict
from crossdistill.methods import METHODS, choose_method, list_methods

EXAMPLES = 150
LONG = 5000
QUIET = dict(deadline=None, suppress_health_check=list(HealthCheck))

NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([0, -1, 1e9, 2**63, 1e400, float("nan")]))
ODD = ["auto", "null", "none", "off", "~", "../x", "a+b", "1e3", "\0"]
WORDS = st.one_of(st.text(max_size=8), st.sampled_from(ODD))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)
NAMES = st.sampled_from(sorted(by_dotted_name(to_dict(RunConfig()))))


def settled(call, *args):
    """Call a function that may refuse what it is given in one line, but not fail in another way."""
    refused = ""
    try:
        return call(*args)
    except UserError as error:
        refused = str(error)
    assert "\n" not in refused
    return None


def nested(changes):
    values = {}
    for name, value in changes.items():
        section, _, key = name.rpartition(".")
        place = values.setdefault(section, {}) if section else values
        if isinstance(place, dict):
            place[key] = value
    return values


def check_settings(changes):
    config = settled(from_dict, nested(changes), "")
    if config is not None:
        assert from_dict(to_dict(config), "") == config


def check_yaml(folder, text):
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    values = settled(read_yaml, path)
    if values is not None:
        settled(from_dict, values, "")


def check_methods(text):
    for part in settled(split_variants, text) or []:
        for parse in (parse_variant, parse_student):
            settled(parse, part)


def check_options(name, option, value):
    settled(choose_method, name, {option: value})


def damaged(content, places):
    content = bytearray(content)
    for place, value in places:
        content[place % len(content)] = value
    return bytes(content)


def weights():
    content = io.BytesIO()
    torch.save({"state_dict": {"fc.weight": torch.zeros(3, 2)}, "classes": ["a", "b"], "epoch": 3}, content)
    return content.getvalue()


def check_weights(folder, suffix, content):
    path = folder / f"weights{suffix}"
    path.write_bytes(content)
    loaded = settled(read_file, path)
    if loaded is not None:
        settled(groups_of, loaded)
        settled(names_in, loaded)


def check_manifest(folder, changes):
    path = folder / "cache"
    path.mkdir(exist_ok=True)
    write_manifest(path, CacheFormat(10, 4, 3, None, (), "float16"), {"version": 1})
    manifest = next(path.glob("*.json"))
    values = json.loads(manifest.read_text())
    for name, value in changes.items():
        names = [*values, "format"]
        values[names[len(name) % len(names)]] = value
    manifest.write_text(json.dumps(values))
    settled(read_manifest, path)


TEXTS = st.one_of(st.text(max_size=40), st.text(alphabet="rsdkd+{}=,[]:none 01.-&*!<\n\t", max_size=40))
PLACES = st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=20)
OPTIONS = sorted({name for key in list_methods() for name in choose_method(key).plain.get(key, {})})

CASES = {
    "settings": ((st.dictionaries(NAMES, VALUES, max_size=4),), lambda folder, changes: check_settings(changes)),
    "yaml": ((TEXTS,), check_yaml),
    "dumped": (
        (st.dictionaries(NAMES, VALUES, max_size=4),),
        lambda folder, changes: check_yaml(folder, yaml.safe_dump(nested(changes))),
    ),
    "methods": ((TEXTS,), lambda folder, text: check_methods(text)),
    "options": (
        (st.sampled_from(sorted(METHODS)), st.sampled_from(OPTIONS), VALUES),
        lambda folder, *words: check_options(*words),
    ),
    "weights": (
        (st.sampled_from([".pth", ".safetensors"]), PLACES),
        lambda folder, suffix, places: check_weights(folder, suffix, damaged(weights(), places)),
    ),
    "junk": ((st.sampled_from([".pth", ".safetensors"]), st.binary(max_size=60)), check_weights),
    "manifest": ((st.dictionaries(WORDS, VALUES, min_size=1, max_size=2),), check_manifest),
}


def search(case, folder, examples):
    strategies, check = CASES[case]

    # The default run has the same examples every time; the long one looks for new ones.
    @settings(max_examples=examples, derandomize=examples == EXAMPLES, **QUIET)
    @given(st.tuples(*strategies))
    def hold(values):
        check(folder, *values)

    hold()


@pytest.mark.parametrize("case", CASES)
def test_any_content_is_read_or_refused(tmp_path, case):
    search(case, tmp_path, EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_any_content_is_read_or_refused_at_length(tmp_path, case):
    search(case, tmp_path, LONG)
