"""What was found of a file is not kept beyond its truth."""

import builtins
import io
import os

import pytest
from PIL import Image

import resnet_jax as rj


@pytest.fixture
def folder(tmp_path, own_cache):
    """Six BMPs, all of one size and time, in a folder for each of two classes; an empty cache."""
    root = tmp_path / "pictures"
    for k, name in enumerate(("dark", "light")):
        (root / name).mkdir(parents=True)
        for i in range(6):
            path = root / name / f"{i}.bmp"
            Image.new("L", (8, 8), 128 * k + 10 * i).save(path)
            os.utime(path, ns=(10**18, 10**18))
    return root


def labels_by_level(folder, **options):
    """The grey level of each image in the folder and its label, and the fingerprint."""
    data = rj.load_dataset("folder", folder, validation=0, streaming="never", **options)
    found = {}
    for part in (data.train, data.test):
        found |= dict(zip(part.images[:, 0, 0, 0].tolist(), part.labels.tolist(), strict=True))
    return found, data.fingerprint


def test_files_that_change_places_change_labels(folder):
    before, fingerprint = labels_by_level(folder)
    assert (before[0], before[128]) == (0, 1)
    one, other, aside = folder / "dark/0.bmp", folder / "light/0.bmp", folder / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    streamed = rj.load_dataset("folder", folder, validation=0, streaming="always").fingerprint
    assert streamed != fingerprint
    assert labels_by_level(folder) == ({**before, 0: 1, 128: 0}, streamed)


def test_a_file_changed_in_place_with_its_times_kept_is_read_again(folder):
    before, fingerprint = labels_by_level(folder)
    path = folder / "dark/0.bmp"
    Image.new("L", (8, 8), 7).save(path)
    os.utime(path, ns=(10**18, 10**18))
    after, changed = labels_by_level(folder)
    assert after == {7: 0, **{level: label for level, label in before.items() if level}}
    assert changed != fingerprint


def test_a_read_error_is_gone_when_it_is_gone(folder, monkeypatch):
    path = folder / "dark/0.bmp"

    def failing(original):
        def opened(file, *args, **kwargs):
            if isinstance(file, str | os.PathLike) and os.fspath(file) == str(path):
                raise OSError(5, "Input/output error", str(path))  # as a network disk has at times
            return original(file, *args, **kwargs)

        return opened

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", failing(io.open))
        patch.setattr(builtins, "open", failing(builtins.open))
        assert len(labels_by_level(folder, skip_bad=True)[0]) == 11
    assert len(labels_by_level(folder, skip_bad=True)[0]) == 12


COUNTING = """
import sys, PIL, PIL.Image
opened = []
original = PIL.Image.open
def counting(*args, **kwargs):
    opened.append(args)
    return original(*args, **kwargs)
PIL.Image.open = counting
version, *folders = sys.argv[1:]
PIL.__version__ = version or PIL.__version__
import resnet_jax as rj
for folder in folders:
    rj.load_dataset("folder", folder)
print(len(opened))
"""


def test_a_folder_has_one_cache_however_it_is_spelt_and_for_each_decoder_another(folder, python):
    def decoded(*folders, version=""):
        """How often another process decodes an image to open the folders."""
        return int(python("-c", COUNTING, version, *folders, cwd=folder.parent).stdout)

    (folder.parent / "link").symlink_to(folder)
    assert decoded(folder) >= 12
    assert decoded(folder.name, folder.parent / "link") == 0
    assert decoded(folder, version="99.0") >= 12  # of Pillow
