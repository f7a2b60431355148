"""What README and docs/ said of the files and the JSON of version 0.1.0; see test_contract.py."""

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from PIL import Image
from test_contract import missing

import resnet_jax as rj
from resnet_jax.cli import main

# Keys of JSON objects, YAML documents and CSV tables.
COMMON = "step epoch kind loss accuracy seconds"
ROW = {
    "train": f"{COMMON} learning_rate grad_norm images_per_s",
    "validation": COMMON,
    "test": f"{COMMON} split checkpoint last",
}
EVALUATION = "accuracy loss correct count per_class confusion"
PREDICTION = "path label probability topk"
PREDICTION_CSV = "path label probability"
ABOUT = "class_names preprocessing model"
PREPROCESSING = "image_shape mean std"


def shown(*arguments: str | Path) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([str(argument) for argument in arguments]) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    Image.fromarray(rj.load_dataset("mnist_5k").test.images[0, :, :, 0]).save(folder / "0.png")
    return folder


def test_the_folder_of_a_run(finished_run):
    names = [path.name for path in finished_run.path.iterdir()]
    assert not missing(".lock checkpoints config.yaml metrics.jsonl run.log", names)
    document = yaml.safe_load((finished_run.path / "config.yaml").read_text())
    assert not missing("config data versions commit", document)
    assert not missing("model data augment optim epochs batch_size seed", document["config"])
    assert not missing("fingerprint class_names image_shape", document["data"])
    assert not missing("resnet_jax jax jaxlib flax optax", document["versions"])
    manifest = json.loads((finished_run.path / "checkpoints/12/manifest.json").read_text())
    assert not missing("files sha256 step validation", manifest)
    assert not missing("accuracy loss", manifest["validation"])


def test_lines_of_metrics(finished_run):
    lines = (finished_run.path / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert {row["kind"] for row in found} == set(ROW)
    for row in found:
        assert not missing(ROW[row["kind"]], row)
    tests = {(row["split"], row["checkpoint"]) for row in found if row["kind"] == "test"}
    assert tests == {(s, c) for s in ("test", "test_all") for c in ("latest", "best")}


def test_json_of_evaluate(finished_run):
    assert not missing(EVALUATION, json.loads(shown("evaluate", finished_run.path, "--json")))


def test_json_and_csv_of_predict(finished_run, digits):
    (row,) = json.loads(shown("predict", finished_run.path, digits, "--json", "--topk", "2"))
    assert not missing(PREDICTION, row)
    assert len(row["topk"]) == 2
    table = csv.DictReader(io.StringIO(shown("predict", finished_run.path, digits, "--csv")))
    assert table.fieldnames == PREDICTION_CSV.split()


def test_json_of_compare(finished_run):
    (row,) = json.loads(shown("compare", finished_run.path, "--json"))
    for key in ("runs", "seeds", "test accuracy", "test accuracy sd", "test loss", "seconds"):
        assert key in row


def assert_facts(facts: dict[str, Any]) -> None:
    assert not missing(ABOUT, facts)
    assert not missing(PREPROCESSING, facts["preprocessing"])
    assert facts["class_names"] == list("0123456789")


def test_metadata_of_weights_for_torchvision(finished_run, tmp_path):
    from safetensors import safe_open

    path = tmp_path / "network.safetensors"
    shown("export", finished_run.path, "--format", "torchvision", "--output", path)
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    assert_facts({key: json.loads(metadata[key]) for key in ABOUT.split()})


@pytest.mark.slow
def test_outputs_and_facts_of_stablehlo(finished_run, tmp_path):
    path = tmp_path / "network.stablehlo"
    shown("export", finished_run.path, "--format", "stablehlo", "--output", path)
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    outputs = exported.call(np.zeros((3, 28, 28, 1), np.uint8))
    assert outputs["logits"].shape == outputs["probabilities"].shape == (3, 10)
    assert_facts(json.loads(*outputs["about"]))


@pytest.mark.slow
def test_inputs_outputs_and_facts_of_onnx(finished_run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "network.onnx"
    shown("export", finished_run.path, "--format", "onnx", "--output", path)
    session = onnxruntime.InferenceSession(path)
    images = np.zeros((3, 28, 28, 1), np.uint8)
    for name in ("logits", "probabilities"):
        (found,) = session.run([name], {"images": images})
        assert found.shape == (3, 10)
    metadata = session.get_modelmeta().custom_metadata_map
    assert_facts({key: json.loads(metadata[key]) for key in ABOUT.split()})
