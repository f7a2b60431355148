"""Exported networks compute what the run computes, with their preprocessing, and nothing else."""

import dataclasses
import itertools
import json
import re
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from make_datasets import refused
from PIL import ExifTags, Image, ImageDraw
from test_docs import ROOT, blocks

import resnet_jax as rj
from resnet_jax.data.digit import find_digit, read_digit_or_image
from resnet_jax.data.image import DecodeSpec, open_image, read_image
from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.interop import Network, from_torchvision, load_metadata, load_weights, onnx
from resnet_jax.interop.network import export_stablehlo, noise
from resnet_jax.interop.onnx import runner, to_onnx
from resnet_jax.models import VARIANTS, BatchNorm


def network_of(run):
    model = run.model.clone(lowering="reference")  # others are slow to compile, or at full width
    return Network(model, run.variables(), run.preprocessing, run.class_names)


@pytest.fixture(scope="module")
def network(run):
    return network_of(run)


def read_back(metadata):
    """Return the preprocessing that a file's metadata describe; no field may be missing."""
    known = {"image_size": metadata["resize"], **metadata}
    values = {field.name: known[field.name] for field in dataclasses.fields(Preprocessing)}
    return Preprocessing(**{k: tuple(v) if type(v) is list else v for k, v in values.items()})


def test_torchvision_weights_with_class_names_and_preprocessing(run):
    path = run.export("torchvision")
    assert path == run.path / "export" / "resnet18.safetensors"
    variables = from_torchvision(load_weights(path), run.model)
    jax.tree.map(np.testing.assert_array_equal, variables, run.variables("best"))
    metadata = {key: json.loads(v) for key, v in load_metadata(path).items() if key != "format"}
    assert metadata["class_names"] == list(run.class_names)
    preprocessing = metadata["preprocessing"]
    assert (preprocessing["resize"], preprocessing["filter"]) == (32, "bilinear")
    assert read_back(preprocessing) == run.preprocessing
    assert metadata["model"] == {
        "name": "resnet18", "residual": True, "width": 4, "stem": "imagenet",
        "shortcut": "projection",
    }  # fmt: skip
    assert metadata["made_by"] == {
        "resnet_jax": rj.__version__, "jax": jax.__version__, "data": "mnist_5k",
        "checkpoint": "best",
    }  # fmt: skip


def test_every_choice_of_a_preprocessing_survives_json():
    other = Preprocessing((9, 8, 3), 5, True, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "crop", 255, True)
    assert read_back(json.loads(json.dumps(other.to_metadata()))) == other
    arrays = dataclasses.replace(other, mean=np.array(other.mean), std=np.array(other.std))
    assert arrays.to_metadata() == other.to_metadata()


WITH_JAX_ALONE = """
import sys
for name in ("flax", "optax", "orbax", "resnet_jax", "tensorflow_datasets", "onnx", "onnxruntime"):
    sys.modules[name] = None  # importing it fails
import jax, numpy as np
path, images, results = sys.argv[1:]
exported = jax.export.deserialize(bytearray(open(path, "rb").read()))
parts = [exported.call(part)["probabilities"] for part in np.split(np.load(images), [1])]
np.savez(results, platforms=exported.platforms, probabilities=np.concatenate(parts))
"""


@pytest.mark.slow
def test_stablehlo_runs_with_jax_and_flatbuffers_alone_for_any_number_of_images(
    run, tmp_path, python
):
    images = noise(run.image_shape, 7)
    np.save(tmp_path / "images.npy", images)
    path = run.export("stablehlo", tmp_path / "network.stablehlo")
    python("-c", WITH_JAX_ALONE, path, tmp_path / "images.npy", tmp_path / "results.npz")
    results = np.load(tmp_path / "results.npz")
    assert results["platforms"].tolist() == ["cpu", "cuda", "tpu"]
    np.testing.assert_allclose(results["probabilities"], run.predict(images), rtol=0, atol=1e-6)


def test_the_programs_of_the_docs_say_what_predict_says(
    run, tmp_path, command, capsys, monkeypatch
):
    """They agree on a large JPEG that lies on its side, and read pictures of any shape alike."""
    pytest.importorskip("onnxruntime")
    texts = (block.text for block in blocks(ROOT / "docs/weights.md") if block.kind == "py")
    reader, *programs = (text for text in texts if "read(" in text and "np." in text)
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    photo = Image.fromarray(random.integers(0, 256, (9, 14, 3), np.uint8)).resize((700, 450))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photo.save("digit.jpg", exif=exif)
    run.export("stablehlo", "network.stablehlo")
    run.export("onnx", "resnet18.onnx")
    (expected,) = json.loads(command("predict", run.path, "digit.jpg", "--topk", 10, "--json")[1])
    for program in programs:
        names = {}
        exec(reader + program, names)
        assert capsys.readouterr().out.strip() == expected["label"]
        outputs = names.get("outputs") or names
        probabilities = np.asarray(outputs["probabilities"])
        found = dict(zip(names["about"]["class_names"], probabilities[0].tolist(), strict=True))
        assert found == pytest.approx(dict(expected["topk"]), rel=0, abs=1e-5)
    photo.convert("L").crop((5, 9, 600, 449)).save("wide.png")
    photo.resize((20, 28)).save("high.png")
    photo.resize((32, 28)).save("as_it_is.png")
    for path, fit, channels in itertools.product(
        ("digit.jpg", "wide.png", "high.png", "as_it_is.png"), ("pad", "crop"), (1, 3)
    ):
        shape = (28, 32, channels)
        got = names["read"](path, Preprocessing(shape, fit=fit).to_metadata())
        np.testing.assert_array_equal(got, read_image(Path(path), DecodeSpec(shape, fit)))


def test_the_docs_find_the_digit_that_predict_finds(tmp_path):
    """The JPEG is so large that `read` decodes it at a smaller size than the finder needs."""
    paper, path = Image.new("RGB", (640, 480), (225, 222, 215)), tmp_path / "digit.jpg"
    strokes = [(260, 130), (400, 130), (330, 230), (400, 300), (320, 360)]
    ImageDraw.Draw(paper).line(strokes, (40, 40, 70), 7)
    paper.save(path)
    (said,) = re.findall(r"`(find_digit\(.*?)`", (ROOT / "docs/weights.md").read_text())
    found = eval(said, {"find_digit": find_digit, "open_image": open_image, "path": path})
    expected = read_digit_or_image(path, DecodeSpec((28, 28, 1)), find=True).image
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("name", "options", "shape", "resize", "crop"),
    [
        ("resnet50", {}, (33, 47, 3), None, False),
        ("preact_resnet18", {}, (28, 28, 1), 20, False),
        ("resnet18", {"residual": False, "stem": "small"}, (9, 8, 1), 5, True),
        ("resnet20", {}, (11, 9, 3), None, False),
        ("resnet26d", {"widening": 2, "groups": 8}, (33, 47, 3), None, False),
        ("preact_resnet164", {}, (9, 8, 1), None, False),
        ("wide_resnet16_4", {"shortcut": "projection-all"}, (9, 8, 1), None, False),
    ],
)
def test_onnx_has_one_conv_for_each_convolution_and_the_models_logits(
    name, options, shape, resize, crop, draw
):
    """The networks have three units: one begins a stage, one does not, and one has a stride."""
    load = pytest.importorskip("onnx").load_from_string
    pytest.importorskip("onnxruntime")
    settings = {"stage_sizes": (2, 1), "width": 4, "num_classes": 5, "lowering": "reference"}
    model = VARIANTS[name](**settings, **options)
    variables = draw(model, shape)
    channels = tuple(np.linspace(0.2, 0.6, shape[2]).tolist())
    preprocessing = Preprocessing(shape, resize, crop, channels, channels)
    network = Network(model, variables, preprocessing, "abcde")
    content = to_onnx(network)
    nodes = load(content).graph.node
    layers = {"/".join(p[:-1]) for p in flatten_dict(variables["params"]) if p[-1] == "kernel"}
    convolutions = layers - {"head"}
    # Option A is written as a convolution with the identity as kernel and a stride.
    convolutions |= {"stage2_unit1/pad"} if model.shortcut == "pad" else set()
    assert sorted(node.name for node in nodes if node.op_type == "Conv") == sorted(convolutions)

    images = noise(shape, 3)
    logits = jax.jit(network.apply)(variables, images)["logits"]
    got = runner(content)(images)["logits"]
    assert np.abs(got - logits).max() < 1e-5 * np.abs(logits).max()


@pytest.mark.parametrize("format", ["stablehlo", "onnx"])
def test_a_network_that_differs_is_not_left_in_place(run, tmp_path, format, monkeypatch):
    """The exported network is made to see other images than the network it is compared with."""
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    module, name = {"stablehlo": (jax.export, "deserialize"), "onnx": (onnx, "runner")}[format]
    original = getattr(module, name)

    def on_other_images(content):
        exported = original(content)
        call = getattr(exported, "call", exported)
        shown = lambda images: call(255 - images)  # noqa: E731
        shown.call = shown
        return shown

    monkeypatch.setattr(module, name, on_other_images)
    said = refused(run.export, format, tmp_path / "network")
    assert f"{format} export differs from the network by" in said
    assert not list(tmp_path.iterdir())


def test_a_file_is_compared_with_the_network_and_with_xlas_convolutions(network):
    """An export is refused if one of the three is off by a thousandth, more than rounding."""
    network = dataclasses.replace(network, model=network.model.clone(lowering="avx2"))
    right = jax.jit(network.apply)(network.variables, noise((28, 28, 1)))

    def check(off):
        def outputs_of(part, outputs):
            return jax.tree.map(lambda x: (1.001 if part == off else 1) * x, outputs)

        class Off(Network):
            def apply(self, *given):
                return outputs_of(self.model.lowering, super().apply(*given))

        Off(**vars(network)).check("file", lambda images: outputs_of("file", right))

    check(off=None)
    for off in ("file", "avx2", "reference"):
        assert "differs" in refused(check, off)


@pytest.mark.slow
def test_a_deep_network_that_has_hardly_learnt_is_exported():
    """It amplifies rounding to 2e-5 of its logits (ResNet-50: 5e-5), and was refused."""
    pytest.importorskip("onnxruntime")
    model = partial(rj.ResNet, (8, 8), rj.BasicUnit, width=4, stem="small", residual=False)
    preprocessing = Preprocessing((8, 8, 1), mean=(0.5,), std=(0.25,))
    pixels = preprocessing(noise((8, 8, 1)))

    @jax.jit
    def begun(key):
        network = model(norm=partial(BatchNorm, momentum=0.0), lowering="reference")
        variables = network.init(key, pixels, train=False)
        return variables | network.apply(variables, pixels, train=True, mutable=["batch_stats"])[1]

    variables = begun(jax.random.key(0))
    network = Network(model(lowering="reference"), variables, preprocessing, "0123456789")
    network.check("onnx", runner(to_onnx(network)))


def test_files_are_compared_in_full_precision_and_stablehlo_holds_it(
    network, tmp_path, monkeypatch
):
    """By default a GPU's products have ten bits: every ONNX file differed."""
    pytest.importorskip("onnxruntime")
    used = []

    def check(*_):
        used.append(jax.config.values["jax_default_matmul_precision"])

    monkeypatch.setattr(Network, "check", check)
    with jax.default_matmul_precision("tensorfloat32"):
        for export in (onnx.export_onnx, export_stablehlo):
            export(tmp_path / "network", network)
    assert used == ["highest", "highest"]
    module = jax.export.deserialize(bytearray((tmp_path / "network").read_bytes())).mlir_module()
    assert "precision = [HIGHEST, HIGHEST]" in module
    assert "[HIGH, HIGH]" not in module


@pytest.mark.parametrize(
    ("format", "package", "installs"),
    [("onnx", "onnx", "'resnet_jax[onnx]'"), ("stablehlo", "flatbuffers", "flatbuffers")],
)
def test_a_missing_package_is_named(format, package, installs, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert f"pip install {installs}" in refused(run.export, format, tmp_path / "network")
    assert not list(tmp_path.iterdir())


def test_the_command(run, tmp_path, command, refusal):
    output = tmp_path / "new" / "weights.safetensors"
    words = ["export", run.path, "--format", "torchvision", "--output"]
    code, out, _ = command(*words, output)
    assert (code, str(output) in out) == (0, True)
    for place in ("/proc/weights.safetensors", output / "below.safetensors"):
        assert "give another --output" in refusal(*words, place)


@pytest.mark.slow
def test_a_hundred_digits_at_full_width(make_run):
    run = make_run(width=64, lowering="auto")
    images = rj.load_dataset("mnist_5k").test.images[::5]
    probabilities = run.predict(images)
    network = network_of(run)
    logits = np.asarray(jax.jit(network.apply)(run.variables(), images)["logits"])
    load = {"onnx": runner, "stablehlo": lambda c: jax.export.deserialize(bytearray(c)).call}
    for format in load:
        got = jax.device_get(load[format](run.export(format).read_bytes())(images))
        assert np.abs(got["logits"] - logits).max() < 1e-5 * np.abs(logits).max()
        assert np.abs(got["probabilities"] - probabilities).max() < 1e-5
