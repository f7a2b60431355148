"""What does a step cost, on one machine and on many? Measured here, and on paper beyond.

Commands:  python -m experiments.scaling.cost        measures step time and memory (25 minutes)
           python -m experiments.scaling.decode      measures JPEGs read a second (10 seconds)
           python -m experiments.scaling.report      draws the figures, writes the tables
Result:    costs.jsonl, decode.json; README.md here, docs/scaling.md and docs/images/scaling.png
Machine:   2 cores of an AMD EPYC, no accelerator

    cost.py     step time, memory and compilation for images of 28 to 224 and 18 to 152 layers
    decode.py   how fast one core makes arrays of JPEG files
    model.py    step time against devices: compute, all-reduces, input; every constant
    report.py   tables and figures of both
"""
