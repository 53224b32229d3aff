"""The published way of computing VSPBFR, re-created as a baseline for timing and comparison.

It does the arithmetic of the official research release the way that release does it on a CPU,
wasteful steps included:

* modulated convolutions build one weight per sample and run as one grouped convolution;
* FIR filters run as zero insertion, padding, a single-channel convolution and slicing;
* the prior is rendered to its full size (1024) with every ToRGB, then pooled to the working size;
* noise is drawn where none is given, and once per sampling step for nothing;
* bias, leaky ReLU and gain are separate operations; batch norms are not folded; each of the 18
  style blocks runs by itself; fp32, default memory format, nothing fused or compiled.

It holds no code of the release: it was written from a description of the published behaviour and
checked against recorded outputs. Tensor names are the official ones, so official weights load
strictly. For benchmarks only: nothing else may import it, and it imports nothing of the project.
Timings mean something only in `eval()` mode under `torch.no_grad()`.

Shape letters: B images, S working size in pixels, L style codes of an image, D style width.
"""

from .layers import PublishedSMART
from .restorer import PublishedRestorer, PublishedVSPBFR
from .style import PublishedCodeDiffuser, PublishedStyleEncoder, PublishedStyleGAN2

__all__ = [
    "PublishedCodeDiffuser",
    "PublishedRestorer",
    "PublishedSMART",
    "PublishedStyleEncoder",
    "PublishedStyleGAN2",
    "PublishedVSPBFR",
]
