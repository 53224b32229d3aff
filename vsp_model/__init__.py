"""VSPBFR as pure PyTorch: the networks, their losses and training steps.

Inside this package an image is RGB, float, (B, 3, S, S), in [-1, 1]; no device is named.
"""
