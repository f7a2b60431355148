"""Classify image files, a batch at a time, and draw where the network looked."""

import io
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps, PngImagePlugin

from resnet_jax.data.digit import FoundDigit, read_digit_or_image
from resnet_jax.data.image import Box, DecodeSpec, box_of, open_image
from resnet_jax.data.walk import find_images
from resnet_jax.errors import ResNetJaxError
from resnet_jax.inspection.saliency import draw_map, explain
from resnet_jax.memory import cores
from resnet_jax.run import Checkpoint, Run
from resnet_jax.storage import PathLike, atomic_write, expanded, refuse_part_of_run

EXPLAINED = "resnet-jax predict --explain"  # marks the pictures written here
ENLARGEMENT, SMALL_SIDE = 8, 64  # factor for pictures whose longer side is below SMALL_SIDE


def fail(error: ResNetJaxError) -> None:
    raise error


def classify_files(
    run: Run,
    paths: Iterable[PathLike] | PathLike,
    checkpoint: Checkpoint = "best",
    on_error: Callable[[ResNetJaxError], None] = fail,
    *,
    topk: int = 1,
    invert: bool = False,
    explain_in: PathLike | None = None,
) -> Iterator[dict[str, Any]]:
    """Classify the image files of paths, folders and patterns, as `resnet-jax predict` does.

    Yields the rows of ``predict --json`` by batch. ``on_error`` gets a file's error and raises it
    (the default) or returns, to leave the file out. ``explain_in`` is the folder of ``--explain``.
    """
    if not 1 <= topk <= len(run.class_names):
        raise ResNetJaxError(f"--topk must be 1 to {len(run.class_names)}, got {topk}")
    given = [paths] if isinstance(paths, str | bytes | os.PathLike) else [*paths]
    if not any(map(str, given)):
        raise ResNetJaxError("predict needs image files or folders: give PATH...")
    files: list[Path] = []
    for path in given:
        try:
            files += find_images(Path(os.fsdecode(path)))
        except ResNetJaxError as error:
            on_error(error)
    targets = _explanation_files(files, expanded(explain_in)) if explain_in else {}
    settings = run.config.data
    spec = DecodeSpec(run.image_shape, settings.fit, settings.background)
    read = partial(read_digit_or_image, spec=spec, find=settings.find_digit, invert=invert)

    def answered(batch: list[tuple[Path, FoundDigit]]) -> Iterator[dict[str, Any]]:
        images = np.stack([found.image for _, found in batch])
        answers = run.predict(images, checkpoint)
        maps = explain(run, images, checkpoint=checkpoint) if explain_in else [None] * len(batch)
        for (path, found), p, evidence in zip(batch, answers, maps, strict=True):
            top = [(run.class_names[k], float(p[k])) for k in np.argsort(-p, kind="stable")[:topk]]
            row = {"path": str(path), "label": top[0][0], "probability": top[0][1], "topk": top}
            if evidence is not None:
                try:
                    picture = open_image(path, background=spec.background)
                except ResNetJaxError as error:  # the file has changed since it was read
                    on_error(error)
                    continue
                box = found.box or box_of(picture.size, spec)
                _write_explanation(picture, box, evidence, targets[path])
            yield row | ({"found": found.how} if found.how else {})

    def rows() -> Iterator[dict[str, Any]]:
        # In batches, so that only one batch's pixels at a time are kept in memory.
        size = run.config.batch_size
        with ThreadPoolExecutor(settings.workers or cores()) as pool, ExitStack() as stack:
            stack.callback(pool.shutdown, cancel_futures=True)  # if the caller stops early
            for part in (files[start : start + size] for start in range(0, len(files), size)):
                batch = []
                for path, future in [(path, pool.submit(read, path)) for path in part]:
                    large = isinstance(getattr(future.exception(), "__cause__", None), MemoryError)
                    try:  # read it again, alone, if memory ran out beside others
                        batch.append((path, read(path) if large else future.result()))
                    except ResNetJaxError as error:
                        on_error(error)
                if batch:
                    yield from answered(batch)

    return rows()


def _explanation_files(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Choose ``FOLDER/NAME.png`` for each file; refuse to replace anything but an explanation."""
    refuse_part_of_run(Path(os.path.realpath(folder)), "--explain")
    inputs = {os.path.realpath(file) for file in files}
    chosen: dict[Path, Path] = {}
    taken: set[str] = set()
    numbers: Counter[str] = Counter()  # the last number given to each name
    for file in dict.fromkeys(files):  # a file may be given with its folder, too
        stem = file.stem
        if len(os.fsencode(stem)) > 230:  # file systems allow 255 bytes, with number and suffixes
            stem = os.fsencode(stem)[:230].decode(errors="ignore")
        name = stem
        # Files in two folders may share a name; macOS ignores case and Unicode normalisation.
        while (key := unicodedata.normalize("NFC", name).casefold()) in taken:
            numbers[stem] += 1
            name = f"{stem}-{numbers[stem] + 1}"
        taken.add(key)
        target = chosen[file] = folder / f"{name}.png"
        if os.path.realpath(target) in inputs or not _may_replace(target):
            raise ResNetJaxError(
                f"--explain {folder} would write over {target}: give another folder, a new one"
            )
    return chosen


def _may_replace(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return not os.path.lexists(path)
    with suppress(Exception), Image.open(path, formats=["PNG"]) as image:
        return image.info.get("Software") == EXPLAINED
    return False  # whatever the file is, it is not ours


def _write_explanation(picture: Image.Image, box: Box, evidence: np.ndarray, target: Path) -> None:
    """Write a picture with Grad-CAM over it, at its own size; a small one is enlarged."""
    if max(picture.size) < SMALL_SIDE:
        picture = ImageOps.scale(picture, ENLARGEMENT, Image.Resampling.NEAREST)
    picture = draw_map(picture, evidence, box)
    if not evidence.any():
        style: Any = {"fill": "white", "stroke_width": 1, "stroke_fill": "black"}
        size, space = max(10, picture.width // 12), " " if picture.width > 103 else "\n"
        words = space.join(("no", "positive", "evidence"))
        ImageDraw.Draw(picture).text((4, 2), words, font_size=size, **style)
    mark, file = PngImagePlugin.PngInfo(), io.BytesIO()
    mark.add_text("Software", EXPLAINED)
    picture.save(file, "PNG", pnginfo=mark)
    atomic_write(target, file.getvalue(), "give another --explain")
