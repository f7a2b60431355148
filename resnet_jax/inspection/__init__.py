"""Look at what a network has learnt: saliency, feature maps, mistakes, calibration, reports.

    import resnet_jax as rj

    run = rj.Run.open("runs/quickstart-seed0")
    maps = rj.inspection.explain(run, images)              # Grad-CAM++ of uint8 images
    pictures = rj.inspection.overlay(images, maps)         # uint8[N, H, W, 3]
    answers = rj.inspection.examine(run)                   # predictions for the test images
    rj.inspection.plots.mistakes(answers)                  # a matplotlib figure

The names are those of ``__init__.pyi``; each is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
