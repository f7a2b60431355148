"""Grad-CAM against numbers worked out by hand, and the maps and pictures that it makes."""

import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from make_datasets import refused
from PIL import ExifTags, Image, ImageDraw

import resnet_jax as rj
from resnet_jax.data.digit import read_digit_or_image
from resnet_jax.data.image import DecodeSpec, box_of, open_image
from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.inspection import last_features, plots
from resnet_jax.inspection.classify import _write_explanation
from resnet_jax.inspection.saliency import default_stage, forward
from resnet_jax.models import Unit


def by_hand(head, second):
    """Return a one-stage network, whose map is the image and ``second`` of it, and its inputs.

    ``stage_sizes`` is a list, as many users write it, which `jax.jit` cannot hash.
    """

    class Pair(Unit):
        @nn.compact
        def __call__(self, x, *, train):
            image = x[..., :1]
            return jnp.concatenate([image, second(image)], -1)

    model = rj.ResNet(
        stage_sizes=[1], unit=Pair, num_classes=np.shape(head)[1], width=1, stem="small"
    )
    image = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])[None, :, :, None]
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), image)
    variables = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    variables["batch_stats"]["stem"]["norm"]["var"] += 1
    params = variables["params"]
    # The stem's convolution and norm pass the image on: the centre tap, and 1 / sqrt(1 + eps).
    params["stem"]["conv"]["kernel"][1, 1] = 1
    params["stem"]["norm"]["scale"] += np.sqrt(1 + 1e-5)
    params["head"]["kernel"][:] = head
    return model, variables, image


def test_a_label_of_a_byte_is_one_class_of_many():
    """One-hot labels of a byte's type marked every 256th class."""
    head = np.zeros((2, 300))
    head[:, 5], head[:, 261] = (1, 3), (-1, -3)
    cam = partial(rj.inspection.grad_cam, *by_hand(head, lambda image: 2 * image))
    np.testing.assert_array_equal(cam(np.uint8([5])), cam([5]))


def test_grad_cam_by_hand():
    """Map A = (x, 2x); logit_c = sum_k w_kc mean(A_k), so that dlogit_c / dA_k = w_kc / 4.

    Class 0: w = (1, 3): (1 x + 3 2x) / 4 = 7x / 4, and by its largest value: x / 4.
    Class 1: w = (2, -3): (2 x - 6 x) / 4 = -x: cut off, so there is no evidence anywhere.
    """
    model, variables, image = by_hand([[1, 2], [3, -3]], lambda image: 2 * image)
    cam = partial(rj.inspection.grad_cam, model, variables, image, method="grad-cam")
    expected = np.asarray([[[0.25, 0.5], [0.75, 1.0]]])
    np.testing.assert_allclose(cam([0]), expected, rtol=1e-6)
    np.testing.assert_array_equal(cam([1]), np.zeros((1, 2, 2)))
    # The predicted class is 0: its logit is 2.5 (1 + 6), that of class 1 is 2.5 (2 - 6).
    np.testing.assert_allclose(cam(), expected, rtol=1e-6)
    maps = rj.inspection.feature_maps(model, variables, image)
    np.testing.assert_allclose(maps["stage1"][0, ..., 1], [[2, 4], [6, 8]], rtol=1e-6)
    np.testing.assert_allclose(last_features(model, variables, image), [[2.5, 5.0]], rtol=1e-6)


def test_grad_cam_plus_plus_by_hand():
    """The sum of either map is S = 10; a channel weighs g^3 / (2 g^2 + S g^3) = g / (2 + 10 g).

    Class 0: g = (2, 1) / 4: weights 1/14 and 1/18; the map is proportional to 9 x + 7 mirrored x.
    Class 1: g = (-2, -3) / 4: there is no evidence for it.
    """
    model, variables, image = by_hand([[2, -2], [1, -3]], lambda image: image[:, :, ::-1])
    cam = partial(rj.inspection.grad_cam, model, variables, image)
    expected = np.asarray([[[23, 25], [55, 57]]]) / 57
    np.testing.assert_allclose(cam([0]), expected, rtol=1e-5)
    np.testing.assert_array_equal(cam([1]), np.zeros((1, 2, 2)))


def test_maps_of_what_was_cut_out_lie_where_it_was():
    cut = Preprocessing((9, 6, 1), image_size=4, center_crop=True)
    expected = np.zeros((2, 9, 6))
    expected[:, 2:6, 1:5] = 1  # what `preprocess` cuts out
    np.testing.assert_array_equal(cut.uncrop(np.ones((2, 2, 2))), expected)
    resized = Preprocessing((9, 6, 1), image_size=4)
    np.testing.assert_array_equal(resized.uncrop(expected), expected)


@pytest.fixture(scope="module")
def small():
    model = rj.ResNet((1, 1), rj.BasicUnit, num_classes=5, width=4, lowering="reference")
    random = np.random.default_rng(0)
    images = random.normal(size=(3, 28, 28, 1)).astype(np.float32)
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    drawn = jax.tree.map(lambda x: random.uniform(-1, 1, x.shape) / 3, shapes)
    variables = jax.tree.map(lambda x: np.float32(x if x.ndim > 1 else np.ones(x.shape)), drawn)
    return model, variables, images


def test_noting_changes_nothing_and_the_default_stage_is_the_deepest_of_7x7(small):
    model, variables, images = small
    found = jax.jit(partial(forward, model))(variables, images)
    logits = jax.jit(partial(model.apply, train=False))(variables, images)
    np.testing.assert_array_equal(found.logits, logits)
    sizes = {name: x.shape[1] for name, x in found.maps.items()}
    assert list(sizes.items()) == [("stem", 7), ("stage1", 7), ("stage2", 4)]
    default = rj.inspection.grad_cam(model, variables, images)
    chex.assert_shape(default, (3, 7, 7))
    photograph = [np.zeros((1, side, side, 8)) for side in (56, 56, 28, 14, 7)]
    assert default_stage(dict(enumerate(photograph))) == 4
    np.testing.assert_allclose(default.max((1, 2)), 1)
    # Stages that are frozen in training have a gradient; with remat, a map is recorded once.
    changed = rj.inspection.grad_cam(model.clone(frozen_stages=2, remat=True), variables, images)
    np.testing.assert_array_equal(changed, default)
    maps = rj.inspection.feature_maps(model.clone(remat=True), variables, images)
    np.testing.assert_allclose(maps["stage2"], found.maps["stage2"], atol=1e-6)


def test_a_network_without_classes_has_features_and_nothing_to_explain(small):
    model, variables, images = small
    body = model.clone(num_classes=0)
    features = last_features(body, variables, images)
    np.testing.assert_allclose(features, last_features(model, variables, images), atol=1e-6)
    assert "no classes" in refused(rj.inspection.grad_cam, body, variables, images)


def test_what_cannot_be_explained_is_named(small):
    for names, settings in (
        ("stage 3", {"stage": 3}),
        ("stage 0", {"stage": 0}),
        ("grad-cam or grad-cam", {"method": "lime"}),
        ("one for each example, int[3], 0 to 4", {"labels": [1, 2]}),
        ("from 1 to 5: give one for each example, int[3], 0 to 4", {"labels": [1, 2, 5]}),
        ("from 1.0 to 2.5: give", {"labels": [1, 2, 2.5]}),
        ("<U3[3]: give", {"labels": ["cat", "dog", "cat"]}),  # ended in NumPy's error
    ):
        assert names in refused(rj.inspection.grad_cam, *small, **settings)
    model, variables, _ = small
    said = refused(rj.inspection.grad_cam, model, variables, 1.0, labels=[1])  # no images
    assert "labels are int64[1]" in said
    another = "model is a Dense: to look inside give a ResNet"
    for look in (rj.inspection.grad_cam, rj.inspection.feature_maps, last_features):
        assert another in refused(look, nn.Dense(2), *small[1:])


def test_images_are_explained_a_batch_at_a_time(finished_run, monkeypatch):
    """All images were in memory as float32 at once, which is four times their size."""
    preprocess, counts = rj.Run.preprocess, []
    monkeypatch.setattr(
        rj.Run, "preprocess", lambda run, part: (counts.append(len(part)), preprocess(run, part))[1]
    )
    for number in (65, 5, 7):  # rounded up, so that few programs are compiled
        maps = rj.inspection.explain(finished_run, np.zeros((number, 28, 28, 1), np.uint8))
        assert len(maps) == number
    assert counts == [64, 64, 8, 8]
    images, (plus, plain) = finished_run.split("test").images[:8], ("grad-cam++", "grad-cam")
    maps = {m: rj.inspection.explain(finished_run, images, method=m) for m in (plus, plain)}
    np.testing.assert_array_equal(maps[plus], rj.inspection.explain(finished_run, images))
    assert (maps[plain] != maps[plus]).any()
    assert "method must be" in refused(rj.inspection.explain, finished_run, images, method="lime")


def test_overlay_leaves_places_without_evidence_as_they_are():
    images = np.full((1, 8, 8, 1), 100, np.uint8)
    shown = rj.inspection.overlay(images, [[[1.0, 0.0], [0.0, 0.0]]])
    assert (shown[0, 0, 0] != 100).any()
    np.testing.assert_array_equal(shown[0, -1, -1], 100)
    said = refused(rj.inspection.overlay, images.astype(np.float32), np.zeros((1, 2, 2)))
    assert re.search("float32.*give uint8", said)
    assert "a map for each" in refused(rj.inspection.overlay, images, np.zeros((2, 2, 2)))


@pytest.mark.parametrize(
    ("channels", "expected"),
    [(1, [20] * 3), (2, [40] * 3), (3, [20, 60, 90]), (5, [20, 60, 90])],
)
def test_images_of_any_channels_are_shown(channels, expected):
    """Two channels become their mean, more the first three; the report ended in a traceback."""
    images = np.full((1, 8, 8, 5), [20, 60, 90, 7, 7], np.uint8)[..., :channels]
    shown = rj.inspection.overlay(images, np.zeros((1, 2, 2)))
    np.testing.assert_array_equal(shown, np.full((1, 8, 8, 3), expected))
    plots.feature_maps({"stem": np.zeros((8, 8, 2))}, images[0])


def explained(path, spec, *, find=False):
    """Draw as `predict --explain` does, with the image that the network saw as the evidence.

    Returns the picture's first channel, and the mask of what is drawn over, bool[H, W].
    """
    read = read_digit_or_image(path, spec, find=find)
    target, picture = path.with_name("explained.png"), open_image(path)
    box = read.box or box_of(picture.size, spec)
    _write_explanation(picture, box, read.image[..., 0] / 255, target)
    picture = picture.convert("RGB")
    drawn = Image.open(target)
    assert drawn.size == picture.size
    changed = np.abs(np.asarray(drawn).astype(int) - np.asarray(picture)).max(-1)
    return np.asarray(picture)[..., 0], changed > 20


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize(("width", "height"), [(200, 120), (120, 200), (150, 150)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_map_lies_on_the_photo_where_the_network_saw_it(
    tmp_path, fit, width, height, orientation
):
    pixels = np.zeros((height, width), np.uint8)
    pixels[height // 2 - 40 : height // 2 + 5, width // 2 - 20 : width // 2 + 50] = 200
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    photo, drawn = explained(tmp_path / "photo.png", DecodeSpec((28, 28, 1), fit))
    lit = photo > 100
    if fit == "crop" and width != height:  # the corner was cut off
        assert not drawn[photo == 255].any()
        lit &= photo < 255
    assert dice(drawn, lit) > 0.85


def test_a_map_lies_on_the_digit_that_was_found(tmp_path):
    paper = Image.new("RGB", (640, 480), (240, 224, 185))
    ImageDraw.Draw(paper).line([(380, 90), (500, 90), (420, 290)], (25, 25, 30), 22, "curve")
    paper.save(tmp_path / "seven.png")
    photo, drawn = explained(tmp_path / "seven.png", DecodeSpec((28, 28, 1)), find=True)
    assert dice(drawn, photo < 100) > 0.75  # strokes are redrawn as wide as MNIST's


def test_a_map_does_not_lie_on_paper_without_ink(tmp_path):
    """The map of the empty image that the network got was drawn over the whole page."""
    Image.new("RGB", (640, 480), (240, 224, 185)).save(tmp_path / "blank.png")
    spec = DecodeSpec((28, 28, 1))
    read = read_digit_or_image(tmp_path / "blank.png", spec, find=True)
    with Image.open(tmp_path / "blank.png") as paper:
        box = read.box or box_of(paper.size, spec)
        _write_explanation(paper, box, np.ones((7, 7)), tmp_path / "out.png")
        np.testing.assert_array_equal(Image.open(tmp_path / "out.png"), paper)


@pytest.mark.parametrize(("size", "bottom"), [((200, 150), 25), ((64, 64), 45)])
def test_a_picture_without_positive_evidence_says_so(tmp_path, size, bottom):
    """On a picture of 64 pixels the words were cut off after "no positive"."""
    photo, whole = Image.new("RGB", size, (90, 120, 60)), (0, 0, 1, 1)
    target, evidence = tmp_path / "out" / "photo.png", np.zeros((7, 7), np.float32)
    changed = []
    for evidence[3, 3] in (0, 1e-3):  # none, then too little to be seen
        _write_explanation(photo, whole, evidence, target)
        drawn = np.asarray(Image.open(target)).astype(int)
        changed.append((np.abs(drawn - (90, 120, 60)) > 20).any(-1))
    assert changed[0][:bottom].sum() > 100  # the text
    assert not changed[0][bottom:].any()
    assert not changed[0][:, -1].any()
    assert not changed[1].any()


def test_a_unit_that_calls_its_base_class_is_explained_as_it_computes(small):
    """The map's gradient was counted twice."""

    class Same(rj.BasicUnit):
        @nn.compact
        def __call__(self, x, *, train):
            return super().__call__(x, train=train)

    model, variables, images = small
    maps = [rj.inspection.grad_cam(m, variables, images) for m in (model, model.clone(unit=Same))]
    np.testing.assert_array_equal(*maps)
