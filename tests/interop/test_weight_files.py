"""Weights under the names of the book, and files of weights: whole, damaged, hostile."""

import re
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from make_datasets import refused
from test_torchvision import tiny, zeros_of

from resnet_jax.interop import from_torchvision, load_metadata, load_weights, save_weights


def book_names(weights, seed=0):
    """The same weights under the book's names, and a bias for the stem."""
    book = {"net.0.0.bias": np.random.RandomState(seed).standard_normal(4).astype(np.float32)}
    for name, value in weights.items():
        renamed = re.sub(r"^fc\.", "net.7.", name)
        renamed = re.sub(r"^conv1\.", "net.0.0.", renamed)
        renamed = re.sub(r"^bn1\.", "net.0.1.", renamed)
        renamed = re.sub(r"^layer", "net.", renamed)
        renamed = renamed.replace("downsample.0.", "shortcut.").replace("downsample.1.", "bn3.")
        book[renamed] = value
    return book


def test_the_books_names_and_its_stem_bias_in_the_running_mean():
    _, weights = tiny(channels=1)
    book = book_names(weights)
    folded = from_torchvision(book)
    expected = from_torchvision(weights)
    mean = expected["batch_stats"]["stem"]["norm"]["mean"] - book["net.0.0.bias"]
    expected["batch_stats"]["stem"]["norm"]["mean"] = mean
    jax.tree.map(np.testing.assert_array_equal, folded, expected)


def test_the_books_plain_network_leaves_out_its_unused_shortcuts():
    model, weights = tiny(channels=1)
    plain = from_torchvision(book_names(weights), residual=False)
    chex.assert_trees_all_equal_shapes(plain, zeros_of(model.clone(residual=False), channels=1))


def test_what_the_books_file_lacks_is_named_as_the_book_would():
    _, weights = tiny(channels=1)
    book = book_names(weights)
    del book["net.2.0.shortcut.weight"], book["net.0.1.running_mean"]
    book["net.1.0.conv1.bias"] = np.zeros(4, np.float32)
    book["net.0.0.bias"] = np.zeros(3, np.float32)
    missing = "2 missing: net.0.1.running_mean, net.2.0.shortcut.weight"
    missing += "; 1 unknown: net.1.0.conv1.bias; "
    missing += "1 of another shape: net.0.0.bias [3], expected [4]"
    assert missing in refused(from_torchvision, book)


def test_safetensors_round_trip_with_metadata(tmp_path):
    """A number stays one: torchvision's num_batches_tracked is int64[], no int64[1]."""
    _, weights = tiny()
    weights["by columns"] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    path = tmp_path / "weights.safetensors"
    save_weights(path, weights, {"class_names": '["a", "b"]'})
    read = load_weights(path)
    assert read.keys() == weights.keys()
    for name in weights:
        assert (read[name].dtype, read[name].shape) == (weights[name].dtype, weights[name].shape)
        np.testing.assert_array_equal(read[name], weights[name])
    assert load_metadata(path)["class_names"] == '["a", "b"]'
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_file_or_a_text_is_one_line(tmp_path, suffix):
    _, weights = tiny()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch = pytest.importorskip("torch")
        torch.save({n: torch.from_numpy(w) for n, w in weights.items()}, path)
    else:
        save_weights(path, weights)
    whole = path.read_bytes()
    parts = [whole[:length] for length in (0, 4, 100, len(whole) // 2, -1)]
    # What a server says in place of a file; in a pickle its first letter takes from the stack.
    for content in (*parts, b"<html>404</html>" * 100, b"error code: 1015"):
        path.write_bytes(content)
        assert f"{path} is damaged" in refused(load_weights, path)


def test_a_file_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_weights("~/weights.safetensors", {"a.weight": np.ones(3)}, {"of": "a"})
    assert load_weights("~/weights.safetensors").keys() == {"a.weight"}
    assert load_metadata("~/weights.safetensors")["of"] == "a"


@pytest.mark.parametrize("name", ["missing.safetensors", "picture.png", "folder.pth"])
def test_no_such_file_or_of_another_kind(tmp_path, name):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "folder.pth").mkdir()
    assert ".safetensors" in refused(load_weights, tmp_path / name)


def test_bfloat16_in_safetensors(tmp_path):
    import ml_dtypes

    _, weights = tiny()
    halves = {n: w if w.ndim == 0 else w.astype(ml_dtypes.bfloat16) for n, w in weights.items()}
    save_weights(tmp_path / "half.safetensors", halves)
    read = from_torchvision(load_weights(tmp_path / "half.safetensors"))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(read))


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    torch = pytest.importorskip("torch")
    import pickle

    content = {"conv1.weight": RunsCode(tmp_path / "ran")}
    torch.save(content, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(content, protocol=2))
    for name in ("zip.pth", "plain.pth"):
        assert "can run code" in refused(load_weights, tmp_path / name)
        assert not (tmp_path / "ran").exists()
