"""SA-UNet: the network, its data, training, evaluation and the shipped weights. Importing this costs nothing."""
