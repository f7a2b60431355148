"""What README and docs/ said of the files and the JSON of version 0.1.0; see test_contract.py.

The JSON and CSV of `evaluate` and `predict` are in test_cli.py.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from safetensors import safe_open
from test_contract import missing

# Keys of JSON objects, YAML documents and CSV tables.
COMMON = "step epoch kind loss accuracy seconds"
ROW = {
    "train": f"{COMMON} learning_rate grad_norm images_per_s",
    "validation": COMMON,
    "test": f"{COMMON} split checkpoint last",
}
ABOUT = "class_names preprocessing model"
PREPROCESSING = "image_shape mean std"
IMAGES = np.zeros((3, 28, 28, 1), np.uint8)


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


def test_json_of_compare(finished_run, command):
    (row,) = json.loads(command("compare", finished_run.path, "--json")[1])
    for key in ("runs", "seeds", "test accuracy", "test accuracy sd", "test loss", "seconds"):
        assert key in row


def torchvision(path: Path) -> dict[str, Any]:
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    return {key: json.loads(metadata[key]) for key in ABOUT.split()}


def stablehlo(path: Path) -> dict[str, Any]:
    outputs = jax.export.deserialize(bytearray(path.read_bytes())).call(IMAGES)
    assert outputs["logits"].shape == outputs["probabilities"].shape == (3, 10)
    return json.loads(*outputs["about"])


def onnx(path: Path) -> dict[str, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    for name in ("logits", "probabilities"):
        (found,) = session.run([name], {"images": IMAGES})
        assert found.shape == (3, 10)
    metadata = session.get_modelmeta().custom_metadata_map
    return {key: json.loads(metadata[key]) for key in ABOUT.split()}


@pytest.mark.parametrize(
    ("read", "needs"),
    [
        (torchvision, "safetensors"),
        pytest.param(stablehlo, "flatbuffers", marks=pytest.mark.slow),
        pytest.param(onnx, "onnxruntime", marks=pytest.mark.slow),
    ],
)
def test_inputs_outputs_and_facts_of_an_exported_network(
    read, needs, finished_run, tmp_path, command
):
    pytest.importorskip(needs)
    path = tmp_path / "network"
    words = ["export", finished_run.path, "--format", read.__name__, "--output", path]
    assert command(*words)[0] == 0
    facts = read(path)
    assert not missing(ABOUT, facts)
    assert not missing(PREPROCESSING, facts["preprocessing"])
    assert facts["class_names"] == list("0123456789")
