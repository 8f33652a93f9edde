"""`polypstream study`: compares many runs with the ground truth, with the figures that papers report."""
