"""What does the shortcut do? Plain and residual networks of 18, 34 and 50 layers, measured.

Command:   python -m experiments.residual_study              (all; see README.md for the time)
           python -m experiments.residual_study --quick      (a miniature, no network needed)
Needs:     the full MNIST prepared ($TFDS_DATA_DIR, or `resnet-jax data prepare mnist`)
Result:    results.jsonl, a line for each finished run; README.md and results.ipynb read it
Machine:   2 cores of an AMD EPYC, no accelerator

The book (NNDL: Practice, section 5.4) changes the learning rate together with the shortcut. Here
both rates are given to both networks, depth and batch norm are varied, and the networks are looked
into: where the gradient goes, what a shortcut carries, what one unit is worth.

    study.py       the settings, the networks, and the list of runs in their order
    measure.py     the compiled programs of one network, and one run with them
    __main__.py    the command: does what is not done
    analysis.py    means, spreads and intervals; every number of the pages
    figures.py     the figures
    report.py      writes the numbers into the pages
    torchvision.py the comparison with torchvision's network
"""
