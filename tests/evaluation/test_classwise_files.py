"""classwise.json and the tables beside it: whole, of the committed schema, and not to be mistaken."""

import csv
import json

import jsonschema
import numpy as np
import pytest
from classwise_facts import made_up

from jax_advtrain.evaluation.classwise import files

NAMES = tuple(["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"])


@pytest.fixture(scope="module")
def diagnosis():
    return made_up(NAMES)[0]


def test_written_and_read_again(diagnosis, tmp_path):
    arrays = {"id": np.arange(3), "distribution/pgd-20-ce": np.ones((2, 2), np.float32)}
    path = files.write(tmp_path, diagnosis, arrays)
    assert path == tmp_path / "classwise.json" and files.read(tmp_path) == json.loads(json.dumps(diagnosis))
    assert {name: array.tolist() for name, array in files.read_arrays(tmp_path).items()} == {
        name: array.tolist() for name, array in arrays.items()
    }
    tables = {table.stem: list(csv.DictReader(table.open())) for table in tmp_path.glob("*.csv")}
    assert set(tables) == {
        *("per_class", "spread", "flow", "consistency", "gains", "confidence", "temperature", "weight_norm", "epochs")
    }
    worst = [row for row in tables["per_class"] if row["attack"] == "worst-of"]
    assert [row["class"] for row in worst] == list(NAMES)
    assert sum(int(row["correct"]) for row in worst) == diagnosis["accuracy"][-1]["correct"]
    assert not list(tmp_path.glob(".*"))


def test_the_schema_itself_is_one():
    jsonschema.Draft202012Validator.check_schema(files.schema())


def test_classes_without_samples_and_parts_that_are_not_there(tmp_path):
    found, _ = made_up(NAMES, empty=(3, 9), with_all=False)
    files.write(tmp_path, found)
    rows = [row for row in csv.DictReader((tmp_path / "per_class.csv").open()) if row["class"] == "cat"]
    assert all(row["n"] == "0" and row["accuracy"] == "" and float(row["high"]) == 1 for row in rows)
    assert not (tmp_path / "epochs.csv").exists()
    told = "\n".join(found["verdict"])
    assert "no sample, so nothing is known of: cat, truck" in told
    assert "the log of epochs holds no per-class accuracies" in told
    assert "no dense last layer" in told


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda found: found.update(schema_version=2), "schema_version 2 was met, this jax_advtrain reads 1"),
        (lambda found: found.update(kind="diagnose"), "does not fit the schema"),
        (lambda found: found.pop("gap"), "'gap' is a required property"),
        (lambda found: found["accuracy"][0]["per_class"][0].update(low=1.5), r"\$.accuracy\[0\].per_class\[0\].low"),
        (lambda found: found.update(verdict=["two\nlines"]), "verdict"),
        (lambda found: found.update(extra=1), "extra"),
    ],
)
def test_other_content_is_refused(diagnosis, tmp_path, change, expected):
    found = json.loads(json.dumps(diagnosis))
    change(found)
    with pytest.raises(ValueError, match=expected):
        files.write(tmp_path, found)
    assert not list(tmp_path.iterdir())


def test_a_truncated_file_is_told(diagnosis, tmp_path):
    path = files.write(tmp_path, diagnosis)
    path.write_text(path.read_text()[:1000])
    with pytest.raises(ValueError, match="not whole JSON"):
        files.read(tmp_path)
