"""A page on this machine alone: draw a digit or drop an image, see what a run makes of it."""
