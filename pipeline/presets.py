"""What restorers were trained and tested on: ranges of the degradation, each with its source.

All of them run through the one operator of `pipeline/degradation.py` (blur, reduce, noise, JPEG,
enlarge), whose order and steps these papers share; what is random is drawn in our own order, so
a set is equal in distribution, not image by image. Flips, colour shifts and gray of their training
sets are left out, as no test set has them; FREE_FORM alone keeps its own.

The last three are not for faces alone: they change the colours first (`pipeline/colour.py`), and
what they do beside it is that of `mild`.

Ranges are at 512 pixels: blur sigma, reduction, noise sigma on 0 to 255, JPEG quality.
"""

from collections.abc import Mapping
from typing import NamedTuple

from pipeline.colour import CastConfig, FadedConfig, UnderwaterConfig
from pipeline.degradation import FREE_FORM, STAGE_2, DegradationConfig

_SIDES = (41,)
_MILD = DegradationConfig(
    kernel_sides=_SIDES,
    blur_sigma=(0.1, 5.05),
    reduction=(0.8, 4.4),
    noise_sigma=(0, 10),
    jpeg_quality=(80, 100),
    swaps_red_blue=False,
)


class Preset(NamedTuple):
    """Ranges with a name."""

    config: DegradationConfig
    source: str
    """Where the numbers stand."""


PRESETS: Mapping[str, Preset] = {
    "stage-2": Preset(
        STAGE_2,
        "VSPBFR, training of the code diffuser (official release); blur 0.1-10, reduction 0.8-8, "
        "noise 0-20, JPEG 60-99",
    ),
    "free-form": Preset(
        FREE_FORM,
        "VSPBFR, training of the restoration network: stage-2 with flips, haze and gray, which "
        "change the true face too",
    ),
    "gfpgan": Preset(
        DegradationConfig(kernel_sides=_SIDES, swaps_red_blue=False),
        "GFPGAN, options/train_gfpgan_v1.yml; VQFR v1 draws the same",
    ),
    "codeformer": Preset(
        DegradationConfig(
            kernel_sides=_SIDES,
            blur_sigma=(1, 15),
            reduction=(4, 30),
            noise_sigma=(0, 20),
            jpeg_quality=(30, 80),
            swaps_red_blue=False,
        ),
        'CodeFormer, options/CodeFormer_stage2.yml, "large degradation"',
    ),
    "codeformer-small": Preset(
        DegradationConfig(
            kernel_sides=_SIDES,
            blur_sigma=(0.1, 10),
            reduction=(1, 12),
            noise_sigma=(0, 15),
            jpeg_quality=(60, 100),
            swaps_red_blue=False,
        ),
        'CodeFormer, options/CodeFormer_stage3.yml, "small degradation"',
    ),
    "vqfr-2": Preset(
        DegradationConfig(
            kernel_sides=_SIDES,
            blur_sigma=(1, 15),
            reduction=(1, 30),
            noise_sigma=(0, 20),
            jpeg_quality=(30, 90),
            swaps_red_blue=False,
        ),
        "VQFR v2, options/train/VQFR/train_vqfr_v2_B16_200K.yml",
    ),
    "difface": Preset(
        DegradationConfig(
            kernel_sides=_SIDES,
            blur_sigma=(0.1, 15),
            reduction=(0.8, 32),
            noise_sigma=(0, 20),
            jpeg_quality=(30, 100),
            swaps_red_blue=False,
        ),
        "DifFace, configs/training/swinir_ffhq512.yaml: the widest of them",
    ),
    "mild": Preset(_MILD, "our own, of no paper: the gentler half of each range of gfpgan"),
    "heavy": Preset(
        DegradationConfig(
            kernel_sides=_SIDES,
            blur_sigma=(7.55, 15),
            reduction=(16.4, 32),
            noise_sigma=(10, 20),
            jpeg_quality=(30, 65),
            swaps_red_blue=False,
        ),
        "our own, of no paper: the harder half of each range of difface",
    ),
    "colour-cast": Preset(
        _MILD.model_copy(update={"colour": CastConfig()}),
        "a wrong white balance (von Kries 1902) with gamma and GFPGAN's shift, then mild",
    ),
    "faded": Preset(
        _MILD.model_copy(update={"colour": FadedConfig()}),
        "an aged print, our own: less contrast, lifted blacks, paler, yellowed, then mild",
    ),
    "underwater": Preset(
        _MILD.model_copy(update={"colour": UnderwaterConfig()}),
        "attenuation and veiling light (McGlamery 1980, Jaffe 1990) in Jerlov's ten waters (Li, "
        "Anwar, Porikli 2020, Table 1), then mild",
    ),
}
