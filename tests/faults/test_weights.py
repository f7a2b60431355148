"""Faults found in use of weights: the command and `rj.*` alone."""

import argparse
import json

import jax
import numpy as np
import pytest

import resnet_jax as rj
from resnet_jax.cli import main

TINY = ["--model.width", "4", "--model.lowering", "reference", "--no-report"]
TINY += ["--data.subset", "8", "4", "4", "--batch-size", "8"]


def refusal(call, *arguments, **keywords):
    """What a call says when it refuses."""
    with pytest.raises(rj.ResNetJaxError) as caught:
        call(*arguments, **keywords)
    return str(caught.value)


def random_weights(**model):
    """Weights of a network for ten classes of grey images, by torchvision's names."""
    network = rj.ResNet18(width=4, **model)
    images = np.zeros((1, 32, 32, 1), np.float32)
    shapes = jax.eval_shape(lambda key: network.init(key, images, train=False), jax.random.key(0))
    random = np.random.default_rng(0)

    def draw(leaf):
        fan_in = np.prod(leaf.shape[:-1])  # 1 for a scale or a bias
        return (random.uniform(0.1, 1, leaf.shape) / fan_in).astype(np.float32)

    return rj.interop.to_torchvision(jax.tree.map(draw, shapes))


@pytest.fixture(scope="module")
def weights():
    return random_weights()


@pytest.fixture(scope="module")
def expected(weights):
    return rj.interop.from_torchvision(weights)


def without_head(weights):
    return {name: value for name, value in weights.items() if not name.startswith("fc.")}


def assert_same(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)


# --- prefixes, nesting, heads --------------------------------------------------------------------

PREFIXES = ["module.", "model.", "_orig_mod.", "module._orig_mod.", "backbone.", "net."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_is_left_out_and_said(weights, expected, prefix, caplog):
    prefixed = {f"{prefix}{name}": value for name, value in weights.items()}
    read = rj.interop.from_torchvision(prefixed)
    assert_same(read, expected)
    assert f"begin with {prefix}," in caplog.text


def test_the_command_reads_prefixed_weights_without_a_head_and_goes_on_without_the_file(
    weights, tmp_path, capsys
):
    """All stages are frozen: a run of one step keeps the weights to the bit."""
    file, folder = tmp_path / "weights.safetensors", tmp_path / "run"
    body = {f"module.{name}": value for name, value in without_head(weights).items()}
    rj.interop.save_weights(file, body)
    command = ["train", "--run-dir", str(folder), *TINY, "--init-from", str(file)]
    command += ["--model.frozen-stages", "4", "--epochs", "1", "--init-head", "fresh"]
    assert main(command) == 0
    assert "begin with module.," in capsys.readouterr().err
    run = rj.Run.open(folder)
    assert (run.config.init_from, run.config.model.frozen_stages) == (str(file), 4)
    tuned = rj.interop.to_torchvision(run.variables("latest"))
    for name, value in without_head(weights).items():
        np.testing.assert_array_equal(tuned[name], value)
    file.unlink()
    assert main(command) == 0  # finished: nothing to read


def test_headless_weights_need_a_number_of_classes(weights, tmp_path, capsys):
    body = without_head(weights)
    read = rj.interop.from_torchvision(body, num_classes=7)
    assert read["params"]["head"]["kernel"].shape == (32, 7)
    with pytest.raises(rj.ResNetJaxError, match="give num_classes for a fresh head"):
        rj.interop.from_torchvision(body)
    file = tmp_path / "weights.safetensors"
    rj.interop.save_weights(file, body)
    command = ["train", "--run-dir", str(tmp_path / "run"), *TINY, "--init-from", str(file)]
    assert main([*command, "--init-head", "keep"]) == 1
    assert "knows no classes, mnist_5k has 10: give --init-head fresh" in capsys.readouterr().err


@pytest.mark.parametrize("classes", [0, -1])
def test_no_classes_are_refused_in_one_line(weights, classes):
    for call in (
        lambda: rj.interop.from_torchvision(weights, num_classes=classes),
        lambda: rj.interop.from_torchvision(weights, rj.ResNet18(num_classes=classes, width=4)),
        lambda: rj.interop.with_fresh_head(rj.interop.from_torchvision(weights), classes),
    ):
        error = refusal(call)
        assert f"num_classes must be at least 1, got {classes}" in error


# --- files of torch ------------------------------------------------------------------------------


def tensors_of(weights):
    torch = pytest.importorskip("torch")
    return {name: torch.from_numpy(value) for name, value in weights.items()}


def wrapped(tensors):
    """How training scripts nest a state_dict: torchvision's, timm's, PyTorch's example, others."""
    args = argparse.Namespace(model="resnet18", lr=0.1, input_size=[1, 32, 32])
    moments = {"state": {0: {"momentum_buffer": tensors["conv1.weight"]}}, "param_groups": []}
    module = {f"module.{name}": value for name, value in tensors.items()}
    return {
        "torchvision": {"model": tensors, "optimizer": moments, "epoch": 3, "args": args},
        "timm": {"arch": "resnet18", "state_dict": tensors, "optimizer": moments, "args": args},
        "example": {"arch": "resnet18", "state_dict": module, "best_acc1": 91.5},
        "tutorial": {"model_state_dict": tensors, "loss": 0.1},
        "deeper": {"checkpoint": {"net": tensors}},
        "averaged alone": {
            "model_ema": {"n_averaged": tensors["bn1.num_batches_tracked"], **module}
        },
    }


KINDS = ["torchvision", "timm", "example", "tutorial", "deeper", "averaged alone"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_scripts_file_is_read(weights, expected, kind, tmp_path):
    torch = pytest.importorskip("torch")
    content = wrapped(tensors_of(weights))
    assert list(content) == KINDS
    torch.save(content[kind], tmp_path / "checkpoint.pth.tar")
    arrays = rj.interop.load_weights(tmp_path / "checkpoint.pth.tar")
    assert_same(rj.interop.from_torchvision(arrays), expected)


@pytest.mark.parametrize(
    ("plain", "averaged"), [("state_dict", "state_dict_ema"), ("model", "model_ema")]
)
def test_averaged_weights_beside_others_are_said(weights, plain, averaged, tmp_path, caplog):
    torch = pytest.importorskip("torch")
    tensors = tensors_of(weights)
    smooth = {name: 2 * value for name, value in tensors.items()}
    torch.save({averaged: smooth, plain: tensors}, tmp_path / "checkpoint.pth")
    assert_same(rj.interop.load_weights(tmp_path / "checkpoint.pth"), weights)
    assert f"{plain} is read; it also holds {averaged}" in caplog.text
    other = rj.interop.load_weights(tmp_path / "checkpoint.pth", key=averaged)
    np.testing.assert_array_equal(other["fc.bias"], 2 * weights["fc.bias"])
    with pytest.raises(rj.ResNetJaxError, match=f"{averaged}, {plain} and no swa"):
        rj.interop.load_weights(tmp_path / "checkpoint.pth", key="swa")


def test_tensors_of_every_kind_are_read(weights, expected):
    tensors = tensors_of(weights)
    for name in ("fc.weight", "bn1.bias"):
        tensors[name].requires_grad_()
    read = rj.interop.from_torchvision(tensors)
    assert_same(read, expected)
    assert_same(rj.interop.from_torchvision(tensors.items()), expected)
    halves = {n: t.bfloat16() if t.is_floating_point() else t for n, t in tensors.items()}
    read = rj.interop.from_torchvision(halves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), read, expected)


def test_parameters_alone_lack_statistics_and_a_network_is_no_state_dict(weights):
    torch = pytest.importorskip("torch")
    parameters = ((n, torch.nn.Parameter(t)) for n, t in tensors_of(weights).items() if t.ndim)
    named = ((n, p) for n, p in parameters if "running" not in n)
    error = refusal(rj.interop.from_torchvision, named)
    assert "40 missing: bn1.running_mean" in error
    error = refusal(rj.interop.from_torchvision, torch.nn.Linear(2, 2))
    assert "must be a state_dict, arrays by name, got Linear" in error


# --- other networks ------------------------------------------------------------------------------


def zeros(sizes, bottleneck=True, width=1, groups=1, width_factor=1.0, stem="conv1", **more):
    """A state_dict of a relative, 1/64 as wide: torchvision's ResNet in names and shapes."""
    expansion = 4 if bottleneck else 1
    shapes = {f"{stem}.weight": (width, 3, 7, 7), "fc.weight": (10, width * 8 * expansion)}
    shapes |= {"fc.bias": (10,)}

    def norm(name, features):
        parts = ("weight", "bias", "running_mean", "running_var")
        shapes.update({f"{name}.{part}": (features,) for part in parts})

    norm("bn1", width)
    before = width
    for stage, size in enumerate(sizes):
        for index in range(size):
            unit, features = f"layer{stage + 1}.{index}", width * 2**stage
            inner = int(features * width_factor) if bottleneck else features
            after = features * expansion
            layers = [(1, before, inner), (3, inner // groups, inner), (1, inner, after)]
            if not bottleneck:
                layers = [(3, before, inner), (3, inner, after)]
            for number, (side, inputs, outputs) in enumerate(layers, start=1):
                shapes[f"{unit}.conv{number}.weight"] = (outputs, inputs, side, side)
                norm(f"{unit}.bn{number}", outputs)
            if index == 0 and (stage or before != after):
                shapes[f"{unit}.downsample.0.weight"] = (after, before, 1, 1)
                norm(f"{unit}.downsample.1", after)
            before = after
    return {name: np.zeros(shape, np.float32) for name, shape in (shapes | more).items()}


RELATIVES = {
    "resnet200": zeros((3, 24, 36, 3)),
    "resnet10": zeros((1, 1, 1, 1), bottleneck=False),
    "resnet50d": zeros((3, 4, 6, 3), stem="conv1.0"),
    "seresnet50": zeros((3, 4, 6, 3), **{"layer1.0.se.fc1.weight": (1, 4, 1, 1)}),
}


@pytest.mark.parametrize("name", RELATIVES)
def test_a_relative_is_named_in_one_short_line(name):
    error = refusal(rj.interop.from_torchvision, RELATIVES[name])
    assert f"they look like {name}" in error
    assert len(error) < 700
    assert "\n" not in error


def test_any_depth_is_read_with_its_model():
    with pytest.raises(rj.ResNetJaxError) as caught:
        rj.interop.from_torchvision(RELATIVES["resnet10"])
    assert "model=rj.ResNet((1, 1, 1, 1), rj.BasicUnit, num_classes=...)" in str(caught.value)
    model = rj.ResNet((1, 1, 1, 1), rj.BasicUnit, num_classes=10, width=1)
    read = rj.interop.from_torchvision(RELATIVES["resnet10"], model)
    assert "stage4_unit1" in read["params"]


@pytest.mark.parametrize(
    "form", [{"width_factor": 2}, {"width": 64, "groups": 32, "width_factor": 2}]
)
def test_width_and_groups_are_read_from_the_shapes(form):
    """They were refused; a model of other groups than the file's is."""
    weights = zeros((3, 4, 6, 3), **form)
    read = rj.interop.from_torchvision(weights)
    kernel = read["params"]["stage1_unit1"]["conv2"]["kernel"]
    assert kernel.transpose(3, 2, 0, 1).shape == weights["layer1.0.conv2.weight"].shape
    error = refusal(rj.interop.from_torchvision, weights, rj.ResNet50(width=form.get("width", 1)))
    assert "do not fit resnet50" in error


def test_a_part_of_a_larger_network_is_refused():
    """FCN's and DeepLab's ResNet-50 has torchvision's shapes and is dilated."""
    body = {f"backbone.{n}": v for n, v in without_head(zeros((3, 4, 6, 3))).items()}
    fcn = body | {"classifier.0.weight": np.zeros((2, 32, 3, 3)), "classifier.4.bias": np.zeros(2)}
    error = refusal(rj.interop.from_torchvision, fcn, num_classes=10)
    assert "resnet50 under backbone. and of a larger network (2 entries" in error
    twins = {f"{part}.{n}": v for part in ("encoder_q", "encoder_k") for n, v in body.items()}
    error = refusal(rj.interop.from_torchvision, twins)
    assert "several networks, under encoder_q.backbone., encoder_k.backbone.: give one" in error


OTHERS = {
    "resnetblur18": {"architecture": "resnetblur18"},
    "resnetaa50.d_in1k": {"architecture": "resnetaa50.d_in1k", "num_classes": 1000},
    "output_stride 8": {"architecture": "resnet18", "model_args": {"output_stride": 8}},
    "output_stride 16": {"architecture": "resnet18", "output_stride": 16},
    "act_layer silu": {"architecture": "resnet18", "model_args": {"act_layer": "silu"}},
    "global_pool max": {"architecture": "resnet18", "global_pool": "max"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_timms_config_names_a_network_that_computes_something_else(weights, name, tmp_path, capsys):
    rj.interop.save_weights(tmp_path / "model.safetensors", weights)
    (tmp_path / "config.json").write_text(json.dumps(OTHERS[name]))
    error = refusal(rj.interop.load_weights, tmp_path / "model.safetensors")
    assert name in error
    command = ["train", "--run-dir", str(tmp_path / "run"), *TINY]
    assert main([*command, "--init-from", str(tmp_path / "model.safetensors")]) == 1
    line = capsys.readouterr().err
    assert name in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "resnet18.a1_in1k", "global_pool": "avg", "model_args": None},
        {"architecture": "resnet18", "model_args": {"output_stride": 32}},
        {"architectures": ["ResNetForImageClassification"], "global_pool": "max"},
        ["architecture"],
        "{",
    ],
)
def test_timms_config_of_a_network_that_is_ours_and_others_files(weights, config, tmp_path):
    rj.interop.save_weights(tmp_path / "model.safetensors", weights)
    text = config if isinstance(config, str) else json.dumps(config)
    (tmp_path / "config.json").write_text(text)
    assert_same(rj.interop.load_weights(tmp_path / "model.safetensors"), weights)


def test_a_training_scripts_file_names_one_too(weights, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = tensors_of(weights)
    dilated = argparse.Namespace(model="resnet50", model_kwargs={"output_stride": 8})
    for content, name in (
        ({"arch": "resnetblur18", "state_dict": tensors}, "resnetblur18"),
        ({"model": tensors, "args": argparse.Namespace(model="resnetaa50")}, "resnetaa50"),
        ({"state_dict": tensors, "args": dilated}, "resnet50 with output_stride 8"),
    ):
        torch.save(content, tmp_path / "checkpoint.pth")
        error = refusal(rj.interop.load_weights, tmp_path / "checkpoint.pth")
        assert name in error
