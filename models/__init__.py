"""SA-UNet: the architecture, its training data, training, evaluation and the shipped weights.

Importing this package imports nothing else.
"""
