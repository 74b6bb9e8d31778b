"""The network in Triton: a list of launches for each shape, over open lists that stay on the device."""
