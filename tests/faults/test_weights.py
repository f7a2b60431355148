"""Faults found in the use of weights, shown with only the command and `rj.*`."""

import argparse
import re
import warnings
from functools import cache, partial

import chex
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from make_datasets import refused

import resnet_jax as rj
from resnet_jax.interop import from_torchvision, load_weights, save_weights, with_fresh_head
from resnet_jax.models import shapes_of

TINY = ["--model.width", "4", "--model.lowering", "reference", "--no-report"]
TINY += ["--data.subset", "8", "4", "4", "--batch-size", "8"]
misfit = partial(refused, from_torchvision)
unread = partial(refused, load_weights)


def state_dict(network, channels=3, fill=np.zeros):
    """Return a network's weights under torchvision's names."""
    shapes = shapes_of(network, (32, 32, channels))
    filled = {path: np.float32(fill(shape)) for path, shape in shapes.items()}
    return rj.interop.to_torchvision(unflatten_dict(filled))


def drawn(shape):
    random = np.random.default_rng(sum(shape))
    return random.uniform(0.1, 1, shape) / np.prod(shape[:-1])  # 1 for a scale or a bias


@pytest.fixture(scope="module")
def weights():
    """Weights for ten classes of grey images."""
    return state_dict(rj.ResNet18(width=4), 1, drawn)


@pytest.fixture(scope="module")
def expected(weights):
    return from_torchvision(weights)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "weights.safetensors"


def without_head(weights):
    return {name: value for name, value in weights.items() if not name.startswith("fc.")}


# --- prefixes, nesting, heads --------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module._orig_mod.", "net."])  # the book's too
def test_a_prefix_is_left_out_and_said(weights, expected, prefix, caplog):
    prefixed = {f"{prefix}{name}": value for name, value in weights.items()}
    chex.assert_trees_all_equal(from_torchvision(prefixed), expected)
    assert f"begin with {prefix}," in caplog.text


def test_the_command_reads_prefixed_weights_without_a_head_and_goes_on_without_the_file(
    one_unit, file, tmp_path, command
):
    """Because all stages are frozen, a run of one step keeps the weights to the bit."""
    weights = state_dict(rj.ResNet((1,), rj.BasicUnit, num_classes=10, width=4), 1, drawn)
    folder, body = tmp_path / "run", without_head(weights)
    save_weights(file, {f"module.{name}": value for name, value in body.items()})
    words = ["train", "--run-dir", folder, *TINY, "--init-from", file]
    words += ["--model.frozen-stages", "1", "--epochs", "1", "--init-head"]
    code, _, err = command(*words, "keep")
    said = "knows no classes, mnist_5k has 10: give --init-head fresh"
    assert (code, said in err) == (1, True)
    words.append("fresh")
    code, out, err = command(*words)
    assert (code, "begin with module.," in err) == (0, True)
    sentence = f"starts from {file}: head drawn fresh for 10 classes, stem kept, other layers"
    assert out.count(sentence) == 1
    assert "% initial" not in out  # the weights' own statistics are not initial ones
    assert sentence in (folder / "run.log").read_text()
    run = rj.Run.open(folder)
    assert (run.config.init_from, run.config.model.frozen_stages) == (str(file), 1)
    tuned = without_head(rj.interop.to_torchvision(run.variables("latest")))
    chex.assert_trees_all_equal(tuned, body)
    file.unlink()
    code, out, _ = command(*words)  # the run is finished and reads no file
    assert (code, "starts from" in out) == (0, False)


def test_another_head_than_a_dense_layer_makes_room_for_a_fresh_one(weights, expected, caplog):
    """Dropout before it, no bias (a cosine classifier), a convolution as head, or no head."""
    fresh, fc = with_fresh_head(expected, 7), weights["fc.weight"]
    dropout = {name.replace("fc.", "fc.1."): value for name, value in weights.items()}
    cosine = {name: value for name, value in weights.items() if name != "fc.bias"}
    convolution = weights | {"fc.weight": fc[..., None, None]}
    for other in (dropout, cosine, convolution, without_head(weights)):
        chex.assert_trees_all_equal(from_torchvision(other, num_classes=7), fresh)
        assert misfit(other).endswith("give num_classes for a fresh head")
    assert "head is no dense layer and left out: fc.1.bias, fc.1.weight" in caplog.text
    assert "unknown: fc.1.bias" in misfit(dropout)
    assert "of another shape" not in misfit(cosine)
    features = from_torchvision(weights, num_classes=0)
    chex.assert_trees_all_equal(with_fresh_head(features, 7), fresh)
    of_ones_own = {"params": {"stem": features["params"]["stem"], "head": fresh["params"]["head"]}}
    again = with_fresh_head(of_ones_own, 7)
    chex.assert_trees_all_equal(again["params"]["head"], fresh["params"]["head"])
    wrong = misfit(weights, rj.ResNet18(width=4, num_classes=3))
    assert "of another shape: fc.bias" in wrong
    assert wrong.endswith("give num_classes for a fresh head")
    broken = weights | {"fc.weight": np.full_like(fc, np.nan)}
    assert "fresh head" not in misfit(broken)  # which would not help


def test_less_than_no_classes_and_a_head_without_any_are_refused_in_one_line(weights, expected):
    least = "num_classes must be at least"
    assert f"{least} 0, got -1" in misfit(weights, num_classes=-1)
    assert f"{least} 0, got -1" in misfit(weights, rj.ResNet18(num_classes=-1, width=4))
    assert f"{least} 1, got 0" in refused(with_fresh_head, expected, 0)


# --- files of torch ------------------------------------------------------------------------------


@pytest.fixture
def tensors(weights):
    torch = pytest.importorskip("torch")
    return {name: torch.from_numpy(value) for name, value in weights.items()}


@pytest.fixture
def saved(tmp_path):
    """A function that writes a file as a program does with torch."""
    torch = pytest.importorskip("torch")

    def save(content, name="checkpoint.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


def test_a_checkpoints_network_is_read_and_not_its_losss_class_weights(tensors, expected, saved):
    averaged = {name: 2 * value for name, value in tensors.items()} | {
        "n.weight": tensors["fc.bias"]
    }
    parts = {"criterion": {"weight": tensors["fc.bias"]}, "model_ema": averaged, "model": tensors}
    file = saved(parts)
    chex.assert_trees_all_equal(from_torchvision(load_weights(file)), expected)


def test_a_training_scripts_file_is_read(tensors, expected, saved):
    """A state_dict may be nested as by torchvision, timm, PyTorch's example or other scripts."""
    args = argparse.Namespace(model="resnet18", lr=0.1, input_size=[1, 32, 32])
    moments = {"state": {0: {"momentum_buffer": tensors["conv1.weight"]}}, "param_groups": []}
    module = {f"module.{name}": value for name, value in tensors.items()}
    averaged = {"n_averaged": tensors["bn1.num_batches_tracked"], **module}
    for content in (
        {"model": tensors, "optimizer": moments, "epoch": 3, "args": args},
        {"arch": "resnet18", "state_dict": tensors, "optimizer": moments, "args": args},
        {"arch": "resnet18", "state_dict": module, "best_acc1": 91.5},
        {"model_state_dict": tensors, "loss": 0.1},
        {"state_dict": tensors, "best": np.float64(91.5), "epoch": np.int64(3)},
        {"checkpoint": {"net": tensors}},
        {"model_ema": averaged},
    ):
        arrays = load_weights(saved(content, "checkpoint.pth.tar"))
        chex.assert_trees_all_equal(from_torchvision(arrays), expected)


def test_averaged_weights_beside_others_are_said(weights, tensors, file, saved, caplog):
    smooth = {name: 2 * value for name, value in tensors.items()}
    both = saved({"state_dict_ema": smooth, "state_dict": tensors})
    chex.assert_trees_all_equal(load_weights(both), weights)
    assert "state_dict is read; it also holds state_dict_ema" in caplog.text
    other = load_weights(both, key="state_dict_ema")
    np.testing.assert_array_equal(other["fc.bias"], 2 * weights["fc.bias"])
    save_weights(file, weights)
    assert "holds one state_dict, and key is model_ema" in unread(file, key="model_ema")
    assert "state_dict_ema, state_dict and no swa" in unread(both, key="swa")
    assert "a bare state_dict and no swa" in unread(saved(tensors), key="swa")


def test_tensors_of_every_kind_are_read(tensors, expected):
    for name in ("fc.weight", "bn1.bias"):
        tensors[name].requires_grad_()
    halves = {n: t.bfloat16() if t.is_floating_point() else t for n, t in tensors.items()}
    for given, rtol in ((tensors, 0), (tensors.items(), 0), (halves, 2**-8)):
        chex.assert_trees_all_close(from_torchvision(given), expected, rtol=rtol)


def test_tensors_and_files_of_other_kinds_are_refused_in_one_line(tensors, weights, file, saved):
    """Such are programs, types that NumPy lacks, expanded tensors, and dictionaries in a circle."""
    import torch

    head = b'{"fc.bias":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}'
    file.write_bytes(len(head).to_bytes(8, "little") + head + bytes(4))
    program, circle, endless = file.with_suffix(".pt"), {}, torch.zeros(1).expand(10**12)
    circle[""] = circle
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates both
        eight = torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)
        torch.jit.script(torch.nn.Linear(2, 2)).save(program)
        for odd in (torch.empty(3, device="meta"), eight):
            assert "is not read" in misfit(tensors | {"fc.bias": odd})
    dense = "no state_dict of dense tensors"
    assert dense in unread(saved({"state_dict": {"fc.weight": endless}}))
    assert dense in unread(saved({"a": circle}))
    assert "is a TorchScript program" in unread(program)
    assert "float8_e4m3fn'): save them as float16 or float32" in unread(file)
    missing = file.with_name("missing.pth")
    assert "is not a file" in refused(rj.interop.load_metadata, missing)
    assert "ends in .safetensors" in refused(save_weights, missing, weights)
    assert not missing.exists()


def test_a_small_file_whose_text_is_large_is_read_at_once(tensors, saved):
    text = "x" * 100
    for _ in range(20):
        text = [text] * 8  # the file holds each list once
    named = saved({"state_dict": tensors, "arch": text})
    assert load_weights(named).keys() == tensors.keys()


def test_parameters_alone_lack_statistics_and_a_network_is_no_state_dict(tensors):
    import torch

    parameters = ((n, torch.nn.Parameter(t)) for n, t in tensors.items() if t.ndim)
    named = ((n, p) for n, p in parameters if "running" not in n)
    assert "40 missing: bn1.running_mean" in misfit(named)
    assert "must be a state_dict, arrays by name, got Linear" in misfit(torch.nn.Linear(2, 2))


# --- other networks ------------------------------------------------------------------------------


@cache
def of_units(*sizes, unit=rj.BottleneckUnit, **options):
    return state_dict(rj.ResNet(sizes, unit, **{"num_classes": 10, "width": 1, **options}))


RESNET18 = partial(of_units, 2, 2, 2, 2, unit=rj.BasicUnit)


def test_shapes_that_are_no_network_are_refused_by_name(weights):
    """Pruned weights, and a stem so wide that arrays of its network's shapes were allocated."""
    groups = {"layer1.0.conv2.weight": np.zeros((20, 6, 3, 3), np.float32)}  # 3 of 20
    pruned = of_units(1, num_classes=2, width=4) | groups
    wide = weights | {"conv1.weight": np.broadcast_to(np.float32(0), (10**5, 3, 7, 7))}
    for others in (pruned, wide):
        assert "of another shape" in misfit(others)
    assert "model is a partial" in misfit(weights, rj.ResNet18)


def test_a_plain_networks_weights_are_refused_with_the_argument_that_reads_them():
    plain, residual = RESNET18(residual=False), RESNET18()
    for others in (plain, of_units(1, 1, unit=rj.BasicUnit, residual=False)):
        model = None if others is plain else rj.ResNet((1, 1), rj.BasicUnit, 10, 1)
        assert "residual=False (--model.no-residual)" in misfit(others, model)
    assert from_torchvision(plain, residual=False)
    del residual["layer2.0.downsample.0.weight"], plain["bn1.bias"]
    assert "plain network" not in misfit(residual) + misfit(plain, residual=False)


def test_a_relative_is_named_in_one_short_line_and_any_depth_is_read_with_its_model():
    small = partial(of_units, 1, 1, 1, 1, unit=rj.BasicUnit)
    deep_stem = {re.sub("^conv1", "conv1.0", name): v for name, v in RESNET18().items()}
    gated = RESNET18() | {"layer1.0.se.fc1.weight": np.zeros((1, 4, 1, 1))}
    hint = "rj.ResNet((1, 1, 1, 1), rj.BasicUnit, width=1, num_classes=...)"
    variant = "width=2, stem='deep', shortcut='average', num"
    for weights, *said in (
        (deep_stem, "they look like resnet18c"),
        (gated, "they look like seresnet18"),
        (small(), "they look like resnet10", f"give model={hint}"),
        (small(width=2, stem="deep", shortcut="average"), variant),
    ):
        error = misfit(weights)
        assert all(part in error for part in said)
        assert len(error) < 700
    assert "stage4_unit1" in from_torchvision(small(), eval(hint.replace("...", "10")))["params"]


def test_a_part_of_a_larger_network_is_refused():
    """FCN and DeepLab hold networks that have torchvision's shapes but are dilated."""
    body = {f"backbone.{n}": v for n, v in without_head(RESNET18()).items()}
    fcn = body | {"classifier.0.weight": np.zeros((2, 32, 3, 3)), "classifier.4.bias": np.zeros(2)}
    error = misfit(fcn, num_classes=10)
    assert "resnet18 under backbone. and of a larger network (2 entries" in error
    twins = {f"{part}.{n}": v for part in ("encoder_q", "encoder_k") for n, v in body.items()}
    assert "several networks, under encoder_q.backbone., encoder_k.backbone.: give" in misfit(twins)


@pytest.mark.parametrize(
    ("said", "config"),
    [
        ("resnetblur18", '{"architecture": "resnetblur18"}'),
        ("resnetaa50.d_in1k", '{"architecture": "resnetaa50.d_in1k", "num_classes": 1000}'),
        ("output_stride 8", '{"architecture": "resnet18", "model_args": {"output_stride": 8}}'),
        ("output_stride 16", '{"architecture": "resnet18", "output_stride": 16}'),
        ("act_layer silu", '{"architecture": "resnet18", "model_args": {"act_layer": "silu"}}'),
        ("global_pool max", '{"architecture": "resnet18", "global_pool": "max"}'),
        # These are read: networks like ours, and files of other programs.
        (None, '{"architecture": "resnet18.a1_in1k", "global_pool": "avg", "model_args": null}'),
        (None, '{"architecture": "resnet18", "model_args": {"output_stride": 32}}'),
        (None, '{"architectures": ["ResNetForImageClassification"], "global_pool": "max"}'),
        (None, '["architecture"]'),
        (None, "{"),
    ],
)
def test_timms_config_names_a_network_that_computes_something_else(weights, said, config, file):
    save_weights(file, weights)
    file.with_name("config.json").write_text(config)
    if said is None:
        chex.assert_trees_all_equal(load_weights(file), weights)
    else:
        assert said in unread(file)


def test_a_training_scripts_file_names_one_too(tensors, saved):
    dilated = argparse.Namespace(model="resnet50", model_kwargs={"output_stride": 8})
    for content, name in (
        ({"arch": "resnetblur18", "state_dict": tensors}, "resnetblur18"),
        ({"model": tensors, "args": argparse.Namespace(model="resnetaa50")}, "resnetaa50"),
        ({"model": tensors, "args": {"model": "resnetaa50"}}, "resnetaa50"),
        ({"state_dict": tensors, "args": dilated}, "resnet50 with output_stride 8"),
    ):
        assert name in unread(saved(content))
