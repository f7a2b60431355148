"""Exported networks compute what the run computes, with their preprocessing, and nothing else."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import traverse_util

import resnet_jax as rj
from resnet_jax.cli import main
from resnet_jax.interop import artifact, from_torchvision, load_metadata, load_weights
from resnet_jax.interop.onnx import runner, to_onnx
from resnet_jax.interop.torchvision import shapes_of
from resnet_jax.models import VARIANTS
from resnet_jax.training.program import make_model


def test_torchvision_weights_with_class_names_and_preprocessing(run):
    path = rj.interop.export(run, "torchvision")
    assert path == run.path / "export" / "resnet18.safetensors"
    variables = from_torchvision(load_weights(path), make_model(run.config, 10))
    jax.tree.map(np.testing.assert_array_equal, variables, run.variables("best"))
    metadata = load_metadata(path)
    assert json.loads(metadata["class_names"]) == list(run.class_names)
    preprocessing = json.loads(metadata["preprocessing"])
    assert preprocessing["image_shape"] == [28, 28, 1]
    assert preprocessing["resize"] == 32
    assert preprocessing["mean"] == preprocessing["std"] == [0.5]


WITH_JAX_ALONE = """
import sys
for name in ("flax", "optax", "orbax", "resnet_jax", "tensorflow_datasets"):
    sys.modules[name] = None  # importing it fails
import jax, json, numpy as np
path, images, results = sys.argv[1:]
exported = jax.export.deserialize(bytearray(open(path, "rb").read()))
images = np.load(images)
outputs = exported.call(images)
parts = [exported.call(images[:1]), exported.call(images[1:])]
np.savez(
    results,
    platforms=exported.platforms,
    about=str(*outputs["about"]),
    logits=outputs["logits"],
    probabilities=outputs["probabilities"],
    in_parts=np.concatenate([part["logits"] for part in parts]),
)
"""


def test_stablehlo_runs_with_jax_alone_for_any_number_of_images(run, tmp_path):
    images = artifact.digits(run.image_shape, 7)
    np.save(tmp_path / "images.npy", images)
    path = rj.interop.export(run, "stablehlo", tmp_path / "network.stablehlo")
    files = [str(tmp_path / name) for name in ("images.npy", "results.npz")]
    subprocess.run([sys.executable, "-c", WITH_JAX_ALONE, str(path), *files], check=True)
    results = np.load(tmp_path / "results.npz")
    assert results["platforms"].tolist() == ["cpu", "cuda", "tpu"]
    about = json.loads(str(results["about"]))
    assert about["class_names"] == list(run.class_names)
    np.testing.assert_allclose(results["probabilities"], run.predict(images), rtol=0, atol=1e-6)
    scale = np.abs(results["logits"]).max()
    assert np.abs(results["in_parts"] - results["logits"]).max() < 1e-5 * scale


def test_onnx_is_checked_and_carries_what_it_needs(run):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = rj.interop.export(run, "onnx")
    images = artifact.digits(run.image_shape, 7)
    got = runner(path.read_bytes())(images)
    np.testing.assert_allclose(got["probabilities"], run.predict(images), rtol=0, atol=1e-5)
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(metadata["class_names"]) == list(run.class_names)


def facts_for(shape, resize=None, mean=(0.4,), std=(0.3,), center_crop=False):
    sizes = {"image_shape": shape, "resize": resize, "center_crop": center_crop}
    return {"preprocessing": {**sizes, "mean": mean, "std": std}}


@pytest.mark.parametrize(
    ("name", "options", "shape", "resize", "crop"),
    [
        ("resnet50", {}, [33, 47, 3], None, False),
        ("preact_resnet18", {}, [28, 28, 1], 20, False),
        ("preact_resnet18", {"residual": False, "stem": "small"}, [9, 8, 1], None, False),
        ("resnet18", {"residual": False, "stem": "small"}, [9, 8, 1], 5, True),
    ],
)
def test_onnx_has_one_conv_for_each_convolution_and_the_models_logits(
    name, options, shape, resize, crop
):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model = VARIANTS[name](width=4, num_classes=5, lowering="reference", **options)
    random = np.random.RandomState(0)
    flat = {
        path: (random.uniform(0.5, 1, s) if path[-1] in ("scale", "var") else random.normal(size=s))
        / (np.sqrt(np.prod(s[:-1])) if path[-1] == "kernel" else 1)
        for path, s in shapes_of(model, shape[2]).items()
    }
    variables = traverse_util.unflatten_dict({k: v.astype(np.float32) for k, v in flat.items()})
    channels = tuple(np.linspace(0.2, 0.6, shape[2]))
    content = to_onnx(model, variables, facts_for(shape, resize, channels, channels, crop))
    nodes = onnx.load_from_string(content).graph.node
    convolutions = {"/".join(p[1:-1]) for p in flat if p[-1] == "kernel" and p[1] != "head"}
    assert sorted(node.name for node in nodes if node.op_type == "Conv") == sorted(convolutions)

    images = random.randint(0, 256, (3, *shape)).astype(np.uint8)

    def expected(images):
        mean = np.asarray(channels, np.float32)
        sizes = {"image_size": resize, "center_crop": crop}
        pixels = rj.data.augment.preprocess(images, **sizes, mean=mean, std=mean)
        return model.apply(variables, pixels, train=False)

    logits = np.asarray(jax.jit(expected)(images))
    got = runner(content)(images)["logits"]
    assert np.abs(got - logits).max() < 1e-5 * np.abs(logits).max()


@pytest.mark.parametrize("format", ["stablehlo", "onnx"])
def test_a_network_that_differs_is_not_left_in_place(run, tmp_path, format, monkeypatch):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    outputs = artifact.reference_outputs
    # The reference is shown other images than the exported network.
    monkeypatch.setattr(artifact, "reference_outputs", lambda run, v, x: outputs(run, v, 255 - x))
    with pytest.raises(rj.ResNetJaxError, match=f"{format} export differs from the run by"):
        rj.interop.export(run, format, tmp_path / "network")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(rj.ResNetJaxError, match=r"pip install 'resnet_jax\[onnx\]'"):
        rj.interop.export(run, "onnx")


@pytest.mark.slow
def test_preactivation_is_no_torchvision_network(make_run, tmp_path, capsys):
    run = make_run(name="preact_resnet18")
    output = tmp_path / "weights.safetensors"
    arguments = ["export", str(run.path), "--format", "torchvision", "--output", str(output)]
    assert main(arguments) == 1
    assert "no pre-activation" in capsys.readouterr().err
    assert not output.exists()


def test_the_command(run, tmp_path, capsys):
    output = tmp_path / "new" / "weights.safetensors"
    arguments = ["export", str(run.path), "--format", "torchvision", "--output", str(output)]
    assert main(arguments) == 0
    assert str(output) in capsys.readouterr().out
    assert load_weights(output)["conv1.weight"].shape == (4, 1, 7, 7)
    arguments[-1] = "/proc/weights.safetensors"
    assert main(arguments) == 1
    assert "give another --output" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("format", ["stablehlo", "onnx"])
def test_a_thousand_digits_at_full_width(make_run, format):
    run = make_run(width=64, lowering="auto")
    content = rj.interop.export(run, format).read_bytes()
    load = {"onnx": runner, "stablehlo": lambda c: jax.export.deserialize(bytearray(c)).call}
    call = load[format](content)
    data = rj.load_dataset("mnist_5k")
    images = np.concatenate([data.test.images, data.validation.images])
    assert len(images) == 1000
    got = jax.device_get(call(images))
    logits = artifact.reference_outputs(run, run.variables(), images)["logits"]
    assert np.abs(got["logits"] - logits).max() < 1e-5 * np.abs(logits).max()
    assert np.abs(got["probabilities"] - run.predict(images)).max() < 1e-5
