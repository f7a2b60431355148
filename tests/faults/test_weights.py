"""Faults found in use of weights: the command and `rj.*` alone."""

import argparse
import re
import warnings
from functools import cache, partial

import chex
import jax
import numpy as np
import pytest
from make_datasets import refused

import resnet_jax as rj
from resnet_jax.interop.weights import initial_variables

TINY = ["--model.width", "4", "--model.lowering", "reference", "--no-report"]
TINY += ["--data.subset", "8", "4", "4", "--batch-size", "8"]


def state_dict(network, channels=3, fill=np.zeros):
    """The weights of a network by torchvision's names."""
    images = np.zeros((1, 32, 32, channels), np.float32)
    shapes = jax.eval_shape(partial(network.init, train=False), jax.random.key(0), images)
    filled = jax.tree.map(lambda leaf: np.float32(fill(leaf.shape)), shapes)
    return rj.interop.to_torchvision(filled)


def drawn(shape):
    random = np.random.default_rng(sum(shape))
    return random.uniform(0.1, 1, shape) / np.prod(shape[:-1])  # 1 for a scale or a bias


@pytest.fixture(scope="module")
def weights():
    """For ten classes of grey images."""
    return state_dict(rj.ResNet18(width=4), 1, drawn)


@pytest.fixture(scope="module")
def expected(weights):
    return rj.interop.from_torchvision(weights)


def without_head(weights):
    return {name: value for name, value in weights.items() if not name.startswith("fc.")}


# --- prefixes, nesting, heads --------------------------------------------------------------------

PREFIXES = ["module.", "model.", "_orig_mod.", "module._orig_mod.", "backbone.", "net."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_is_left_out_and_said(weights, expected, prefix, caplog):
    prefixed = {f"{prefix}{name}": value for name, value in weights.items()}
    chex.assert_trees_all_equal(rj.interop.from_torchvision(prefixed), expected)
    assert f"begin with {prefix}," in caplog.text


def test_the_command_reads_prefixed_weights_without_a_head_and_goes_on_without_the_file(
    one_unit, tmp_path, command
):
    """All stages are frozen: a run of one step keeps the weights to the bit."""
    weights = state_dict(rj.ResNet((1,), rj.BasicUnit, num_classes=10, width=4), 1, drawn)
    file, folder = tmp_path / "weights.safetensors", tmp_path / "run"
    body = {f"module.{name}": value for name, value in without_head(weights).items()}
    rj.interop.save_weights(file, body)
    words = ["train", "--run-dir", folder, *TINY, "--init-from", file]
    words += ["--model.frozen-stages", "1", "--epochs", "1", "--init-head", "fresh"]
    code, out, err = command(*words)
    assert (code, "begin with module.," in err) == (0, True)
    sentence = f"starts from {file}: head drawn fresh for 10 classes, stem kept, other layers"
    assert out.count(sentence) == 1
    assert "% initial" not in out  # the weights' own statistics are not young
    assert sentence in (folder / "run.log").read_text()
    run = rj.Run.open(folder)
    assert (run.config.init_from, run.config.model.frozen_stages) == (str(file), 1)
    tuned = rj.interop.to_torchvision(run.variables("latest"))
    for name, value in without_head(weights).items():
        np.testing.assert_array_equal(tuned[name], value)
    file.unlink()
    code, out, _ = command(*words)  # finished: nothing to read
    assert (code, "starts from" in out) == (0, False)


def test_another_head_than_a_dense_layer_makes_room_for_a_fresh_one(weights, caplog):
    """A dropout before it, as many fine-tune: its names were unknown."""
    other = {name.replace("fc.", "fc.1."): value for name, value in weights.items()}
    read = rj.interop.from_torchvision(other, num_classes=7)
    assert read["params"]["head"]["kernel"].shape == (32, 7)
    assert "head is no dense layer and left out: fc.1.bias, fc.1.weight" in caplog.text
    assert "unknown: fc.1.bias" in refused(rj.interop.from_torchvision, other)
    features = rj.interop.from_torchvision(weights, num_classes=0)
    chex.assert_trees_all_equal(rj.interop.with_fresh_head(features, 7), read)
    of_ones_own = {"params": {"stem": features["params"]["stem"], "head": read["params"]["head"]}}
    again = rj.interop.with_fresh_head(of_ones_own, 7)
    chex.assert_trees_all_equal(again["params"]["head"], read["params"]["head"])
    wrong = refused(rj.interop.from_torchvision, weights, rj.ResNet18(width=4, num_classes=3))
    assert "of another shape: fc.bias" in wrong
    assert wrong.endswith("give num_classes for a fresh head")
    broken = weights | {"fc.weight": np.full_like(weights["fc.weight"], np.nan)}
    assert "fresh head" not in refused(rj.interop.from_torchvision, broken)  # it would not help


def test_headless_weights_need_a_number_of_classes(weights, tmp_path, refusal):
    body = without_head(weights)
    read = rj.interop.from_torchvision(body, num_classes=7)
    assert read["params"]["head"]["kernel"].shape == (32, 7)
    assert "give num_classes for a fresh head" in refused(rj.interop.from_torchvision, body)
    file = tmp_path / "weights.safetensors"
    rj.interop.save_weights(file, body)
    words = ["train", "--run-dir", tmp_path / "run", *TINY, "--init-from", file]
    line = refusal(*words, "--init-head", "keep")
    assert "knows no classes, mnist_5k has 10: give --init-head fresh" in line


def test_less_than_no_classes_and_a_head_without_any_are_refused_in_one_line(weights):
    for least, classes, call in (
        (0, -1, lambda: rj.interop.from_torchvision(weights, num_classes=-1)),
        (0, -1, lambda: rj.interop.from_torchvision(weights, rj.ResNet18(num_classes=-1, width=4))),
        (1, 0, lambda: rj.interop.with_fresh_head(rj.interop.from_torchvision(weights), 0)),
    ):
        assert f"num_classes must be at least {least}, got {classes}" in refused(call)


# --- files of torch ------------------------------------------------------------------------------


@pytest.fixture
def tensors(weights):
    torch = pytest.importorskip("torch")
    return {name: torch.from_numpy(value) for name, value in weights.items()}


def saved(content, file):
    """A file that a program writes with torch."""
    import torch

    torch.save(content, file)
    return file


def test_a_training_scripts_file_is_read(tensors, expected, tmp_path):
    """However it nests a state_dict: torchvision's, timm's, PyTorch's example, others."""
    args = argparse.Namespace(model="resnet18", lr=0.1, input_size=[1, 32, 32])
    moments = {"state": {0: {"momentum_buffer": tensors["conv1.weight"]}}, "param_groups": []}
    module = {f"module.{name}": value for name, value in tensors.items()}
    contents = {
        "torchvision": {"model": tensors, "optimizer": moments, "epoch": 3, "args": args},
        "timm": {"arch": "resnet18", "state_dict": tensors, "optimizer": moments, "args": args},
        "example": {"arch": "resnet18", "state_dict": module, "best_acc1": 91.5},
        "tutorial": {"model_state_dict": tensors, "loss": 0.1},
        "numpy": {"state_dict": tensors, "best": np.float64(91.5), "epoch": np.int64(3)},
        "deeper": {"checkpoint": {"net": tensors}},
        "averaged alone": {
            "model_ema": {"n_averaged": tensors["bn1.num_batches_tracked"], **module}
        },
    }
    for kind, content in contents.items():
        name = "checkpoint.pth.tar" if kind == "example" else "checkpoint.pth"
        arrays = rj.interop.load_weights(saved(content, tmp_path / name))
        chex.assert_trees_all_equal(rj.interop.from_torchvision(arrays), expected)


@pytest.mark.parametrize(
    ("plain", "averaged"), [("state_dict", "state_dict_ema"), ("model", "model_ema")]
)
def test_averaged_weights_beside_others_are_said(
    weights, tensors, plain, averaged, tmp_path, caplog
):
    smooth = {name: 2 * value for name, value in tensors.items()}
    file = saved({averaged: smooth, plain: tensors}, tmp_path / "checkpoint.pth")
    chex.assert_trees_all_equal(rj.interop.load_weights(file), weights)
    assert f"{plain} is read; it also holds {averaged}" in caplog.text
    other = rj.interop.load_weights(file, key=averaged)
    np.testing.assert_array_equal(other["fc.bias"], 2 * weights["fc.bias"])
    rj.interop.save_weights(tmp_path / "x.safetensors", weights)
    said = refused(rj.interop.load_weights, tmp_path / "x.safetensors", key=averaged)
    assert f"holds one state_dict, and key is {averaged}" in said
    bare = saved(tensors, tmp_path / "bare.pth")
    assert "a bare state_dict and no swa" in refused(rj.interop.load_weights, bare, key="swa")
    said = refused(rj.interop.load_weights, file, key="swa")
    assert f"{averaged}, {plain} and no swa" in said


def test_tensors_of_every_kind_are_read(tensors, expected):
    for name in ("fc.weight", "bn1.bias"):
        tensors[name].requires_grad_()
    halves = {n: t.bfloat16() if t.is_floating_point() else t for n, t in tensors.items()}
    for given, rtol in ((tensors, 0), (tensors.items(), 0), (halves, 2**-8)):
        found = rj.interop.from_torchvision(given)
        chex.assert_trees_all_close(found, expected, rtol=rtol)


def test_tensors_and_files_of_other_kinds_are_refused_in_one_line(tensors, weights, tmp_path):
    torch = pytest.importorskip("torch")
    program, pickled = tmp_path / "program.pt", tmp_path / "net.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates both
        eight = torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)
        torch.jit.script(torch.nn.Linear(2, 2)).save(program)
        for odd in (torch.empty(3, device="meta"), eight):
            assert "is not read" in refused(rj.interop.from_torchvision, tensors | {"fc.bias": odd})
    assert "is a TorchScript program" in refused(rj.interop.load_weights, program)
    assert "ends in .safetensors" in refused(rj.interop.save_weights, pickled, weights)
    assert not pickled.exists()


def test_a_small_file_of_repetitions_is_refused_or_read_at_once(tensors, tmp_path):
    """Of shared lists as a name, numbers that are repeated, and dictionaries in a circle."""
    torch = pytest.importorskip("torch")
    text, circle, endless = "x" * 100, {}, torch.zeros(1).expand(10**12)
    for _ in range(20):
        text = [text] * 8
    circle[""] = circle
    for content in ({"state_dict": {"fc.weight": endless}}, {"a": circle}):
        line = refused(rj.interop.load_weights, saved(content, tmp_path / "file.pth"))
        assert "no state_dict of dense tensors" in line
    named = saved({"state_dict": tensors, "arch": text}, tmp_path / "file.pth")
    assert rj.interop.load_weights(named).keys() == tensors.keys()


def test_numbers_that_numpy_lacks_and_a_missing_file_are_named(tmp_path):
    head = b'{"fc.bias":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}'
    file = tmp_path / "eight.safetensors"
    file.write_bytes(len(head).to_bytes(8, "little") + head + bytes(4))
    assert "float8" in refused(rj.interop.load_weights, file)
    missing = refused(rj.interop.load_metadata, tmp_path / "missing.safetensors")
    assert "is not a file" in missing


def test_shapes_that_are_no_network_are_refused_by_name(weights):
    """Pruned, and of a stem so wide that its network's shapes were asked of the memory."""
    pruned = state_dict(rj.ResNet((1,), rj.BottleneckUnit, num_classes=2, width=4))
    pruned["layer1.0.conv2.weight"] = np.zeros((20, 6, 3, 3), np.float32)  # 3 groups of 20
    wide = weights | {"conv1.weight": np.broadcast_to(np.float32(0), (10**6, 3, 7, 7))}
    for others in (pruned, wide):
        assert "of another shape" in refused(rj.interop.from_torchvision, others)
    assert "model is a partial" in refused(rj.interop.from_torchvision, weights, rj.ResNet18)


def test_parameters_alone_lack_statistics_and_a_network_is_no_state_dict(tensors):
    import torch

    parameters = ((n, torch.nn.Parameter(t)) for n, t in tensors.items() if t.ndim)
    named = ((n, p) for n, p in parameters if "running" not in n)
    assert "40 missing: bn1.running_mean" in refused(rj.interop.from_torchvision, named)
    error = refused(rj.interop.from_torchvision, torch.nn.Linear(2, 2))
    assert "must be a state_dict, arrays by name, got Linear" in error


# --- other networks ------------------------------------------------------------------------------


def deep(*sizes, unit=rj.BottleneckUnit):
    return state_dict(rj.ResNet(sizes, unit, num_classes=10, width=1))


resnet50 = cache(partial(deep, 3, 4, 6, 3))


def test_a_relative_is_named_in_one_short_line():
    deep_stem = {re.sub("^conv1", "conv1.0", name): v for name, v in resnet50().items()}
    gated = resnet50() | {"layer1.0.se.fc1.weight": np.zeros((1, 4, 1, 1))}
    for name, weights in (("resnet50c", deep_stem), ("seresnet50", gated)):
        error = refused(rj.interop.from_torchvision, weights)
        assert f"they look like {name}" in error
        assert len(error) < 700


def test_any_depth_is_read_with_its_model():
    weights = deep(1, 1, 1, 1, unit=rj.BasicUnit)
    error = refused(rj.interop.from_torchvision, weights)
    assert "they look like resnet10" in error
    assert len(error) < 700
    hint = "rj.ResNet((1, 1, 1, 1), rj.BasicUnit, width=1, num_classes=...)"
    assert f"give model={hint}" in error
    read = rj.interop.from_torchvision(weights, eval(hint.replace("...", "10")))
    assert "stage4_unit1" in read["params"]
    deeper = {"stem": "deep", "shortcut": "average"}
    weights = state_dict(rj.ResNet((1, 1, 1, 1), rj.BasicUnit, num_classes=10, width=2, **deeper))
    assert "width=2, stem='deep', shortcut='average', num" in refused(
        rj.interop.from_torchvision, weights
    )


def test_a_part_of_a_larger_network_is_refused():
    """FCN's and DeepLab's ResNet-50 has torchvision's shapes and is dilated."""
    body = {f"backbone.{n}": v for n, v in without_head(resnet50()).items()}
    fcn = body | {"classifier.0.weight": np.zeros((2, 32, 3, 3)), "classifier.4.bias": np.zeros(2)}
    error = refused(rj.interop.from_torchvision, fcn, num_classes=10)
    assert "resnet50 under backbone. and of a larger network (2 entries" in error
    twins = {f"{part}.{n}": v for part in ("encoder_q", "encoder_k") for n, v in body.items()}
    error = refused(rj.interop.from_torchvision, twins)
    assert "several networks, under encoder_q.backbone., encoder_k.backbone.: give one" in error


@pytest.mark.parametrize(
    ("said", "config"),
    [
        ("resnetblur18", '{"architecture": "resnetblur18"}'),
        ("resnetaa50.d_in1k", '{"architecture": "resnetaa50.d_in1k", "num_classes": 1000}'),
        ("output_stride 8", '{"architecture": "resnet18", "model_args": {"output_stride": 8}}'),
        ("output_stride 16", '{"architecture": "resnet18", "output_stride": 16}'),
        ("act_layer silu", '{"architecture": "resnet18", "model_args": {"act_layer": "silu"}}'),
        ("global_pool max", '{"architecture": "resnet18", "global_pool": "max"}'),
        # Ours, and files of other programs.
        (None, '{"architecture": "resnet18.a1_in1k", "global_pool": "avg", "model_args": null}'),
        (None, '{"architecture": "resnet18", "model_args": {"output_stride": 32}}'),
        (None, '{"architectures": ["ResNetForImageClassification"], "global_pool": "max"}'),
        (None, '["architecture"]'),
        (None, "{"),
    ],
)
def test_timms_config_names_a_network_that_computes_something_else(weights, said, config, tmp_path):
    file = tmp_path / "model.safetensors"
    rj.interop.save_weights(file, weights)
    (tmp_path / "config.json").write_text(config)
    if said is None:
        chex.assert_trees_all_equal(rj.interop.load_weights(file), weights)
    else:
        assert said in refused(rj.interop.load_weights, file)


def test_a_training_scripts_file_names_one_too(tensors, tmp_path):
    dilated = argparse.Namespace(model="resnet50", model_kwargs={"output_stride": 8})
    for content, name in (
        ({"arch": "resnetblur18", "state_dict": tensors}, "resnetblur18"),
        ({"model": tensors, "args": argparse.Namespace(model="resnetaa50")}, "resnetaa50"),
        ({"model": tensors, "args": {"model": "resnetaa50"}}, "resnetaa50"),
        ({"state_dict": tensors, "args": dilated}, "resnet50 with output_stride 8"),
    ):
        file = saved(content, tmp_path / "checkpoint.pth")
        assert name in refused(rj.interop.load_weights, file)


def test_a_deep_stem_begins_with_its_first_convolution(tmp_path):
    """The third one, of half the width, was taken for it: no run started from a D variant."""
    network = rj.ResNet((1,), rj.BasicUnit, num_classes=10, width=4, stem="deep")
    weights = state_dict(network, 3, drawn)
    summed = weights["conv1.0.weight"].sum(1, keepdims=True).transpose(2, 3, 1, 0)
    file = tmp_path / "weights.safetensors"
    rj.interop.save_weights(file, weights)
    config = rj.TrainConfig(init_from=str(file))
    variables, sentence = initial_variables(config, network, tuple("0123456789"), 1, None)
    assert "stem summed to grey" in sentence
    stem = variables["params"]["stem"]
    np.testing.assert_allclose(stem["conv1"]["kernel"], summed, rtol=1e-6)
    assert stem["conv"]["kernel"].shape == (3, 3, 2, 4)
