"""Parts of the restoring chain: encoder, diffuser, generator, restorer, and all together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from parity_vectors import networks
from parity_vectors.vectors import DIGEST, Vectors
from torch import Tensor, nn, stack, tensor

from vsp_model.checkpoints import hollow
from vsp_model.code_diffuser import CodeDiffuser
from vsp_model.randomness import RandomInputs
from vsp_model.restoration import RestorationNet
from vsp_model.style_encoder import StyleEncoder
from vsp_model.vspbfr import VSPBFR, VSPBFRConfig


def encoder(vectors: Vectors) -> None:
    """Codes of an image at the input size, stage by stage, and of a larger one."""
    model = networks.round_less(networks.network(vectors, "encoder", vectors.meta["namespace"]))
    image = vectors.source("image256")
    _check_pyramid(vectors, model, image)
    with networks.checked_stages(vectors, model, networks.style_encoder_stages(model)):
        vectors.check("w_image256", model.encode(image))
    larger = vectors.source("image512")
    vectors.source("latent_avg")
    vectors.check("resized512", model.resize(larger))
    vectors.check("wplus_image512", model(larger))


def _check_pyramid(vectors: Vectors, model: StyleEncoder, image: Tensor) -> None:
    """``in:styles.N`` is the pyramid map that block N reads; ours share a first layer."""
    by_side = {level.shape[-1]: level for level in model.pyramid(image)}
    for token, side in enumerate(model.config.token_sides):
        vectors.check(f"in:styles.{token}", by_side[side])


def code_diffuser(vectors: Vectors) -> None:
    """Single calls, the sampling chain and the training chain."""
    codes, x = vectors.source("cond"), vectors.source("x")
    model = networks.code_diffuser(vectors, vectors.meta["namespace"], codes.shape[1])
    steps = model.config.num_steps
    for t in range(steps):
        stages = {f"block{i}_t{t}": f"blocks.{i}" for i in range(model.config.num_blocks)}
        with networks.checked_stages(vectors, model, stages):
            vectors.check(f"forward_t{t}", model(x, codes, t))
    vectors.check("forward_mixed_t", model(x, codes, tensor(vectors.meta["mixed_t"])))
    _check_chains(vectors, model, codes)


def _check_chains(vectors: Vectors, model: CodeDiffuser, codes: Tensor) -> None:
    states = model.chain(codes, vectors.source("start"))
    for t, state in zip(reversed(range(len(states))), states, strict=True):
        vectors.check(f"sample_step_{t}", state)
    start = model.training_start(codes, vectors.source("q_noise"))
    vectors.check("train_start", start)
    vectors.check("train_final", model.sample(codes, start))


def stylegan(vectors: Vectors) -> None:
    """Features, image and mapping of a generator of any size."""
    namespace = vectors.meta["namespace"]
    model = networks.network(vectors, "prior", namespace)
    vectors.check("mapping", model.mapping(vectors.source("z")))
    maps = vectors.noise(f"noise/{namespace}")
    synthesis = model(vectors.source("w"), maps, image=True)
    for k, feature in enumerate(synthesis.features):
        vectors.check(f"feature{k}", feature)
    vectors.check("image", synthesis.image)
    for side in _pooled_sides(vectors, "image"):
        vectors.check(f"image{side}", F.adaptive_avg_pool2d(synthesis.image, side))


def _pooled_sides(vectors: Vectors, name: str) -> set[int]:
    """Sides N of recorded pictures ``nameN``."""
    pattern = rf"(?:{DIGEST})?{name}(\d+)(?:_.*)?"
    matches = (re.fullmatch(pattern, entry) for entry in vectors.pending)
    return {int(match[1]) for match in matches if match}


def restorer512(vectors: Vectors) -> None:
    """The restorer's output, global code and every stage."""
    namespace, inject = vectors.meta["namespace"], vectors.meta["inject_index"]
    model = networks.network(vectors, "restoration", namespace)
    with (
        networks.checked_stages(vectors, model, networks.restoration_stages(model)),
        _checked_as(vectors, model.to_global, "global_code"),
    ):
        vectors.check("image", _restored(vectors, model, vectors.meta["styles"], inject))
    vectors.check("mapping_z0", model.mapping(vectors.source("z0")))


def restorer_small(vectors: Vectors) -> None:
    """The same with one z, where the stages are recorded, and with two."""
    model = networks.network(vectors, "restoration", vectors.meta["namespace"])
    with networks.checked_stages(vectors, model, networks.restoration_stages(model)):
        vectors.check("image_single", _restored(vectors, model, 1, None))
    mixed = _restored(vectors, model, 2, vectors.meta["inject_index_mixed"])
    vectors.check("image_mixed", mixed)
    vectors.check("mapping_z0", model.mapping(vectors.source("z0")))


def _restored(vectors: Vectors, model: RestorationNet, styles: int, inject: int | None) -> Tensor:
    image = vectors.source("image")
    z = stack([vectors.source(f"z{i}") for i in range(styles)], dim=1)
    return model(
        image,
        vectors.source("wplus"),
        z,
        vectors.sources("features"),
        vectors.noise(f"noise/{vectors.meta['namespace']}"),
        None if inject is None else tensor([inject] * len(image)),
    )


@contextmanager
def _checked_as(vectors: Vectors, module: nn.Module, name: str) -> Iterator[None]:
    handle = module.register_forward_hook(
        lambda _module, _args, output: vectors.check(name, output)
    )
    try:
        yield
    finally:
        handle.remove()


def pipeline(vectors: Vectors) -> None:
    """Degraded face to restored face through the assembled model."""
    namespaces = vectors.meta["namespaces"]
    lq = vectors.source("image")
    model = _assembled(vectors, namespaces)
    prior_noise = vectors.noise(f"noise/{namespaces[2]}")
    random = RandomInputs(
        start=vectors.source("start"),
        z=vectors.source("z")[:, None],
        inject=None,
        prior_noise=prior_noise,
        restoration_noise=vectors.noise(f"noise/{namespaces[3]}"),
    )
    codes, w_plus = model.prompt(lq, random.start)
    vectors.check("w_low", codes)
    vectors.check("w_denoised", w_plus)
    restored = model(lq, random)
    vectors.check("restored", restored)
    vectors.check("restored_float01", (restored.clamp(-1, 1) + 1) / 2)
    _check_prior(vectors, model, w_plus, prior_noise)


def _check_prior(vectors: Vectors, model: VSPBFR, w_plus: Tensor, noise: list[Tensor]) -> None:
    synthesis = model.prior(w_plus, noise, image=True)
    for k, feature in enumerate(synthesis.features):
        vectors.check(f"feature{k}", feature)
    vectors.check("style_image", F.adaptive_avg_pool2d(synthesis.image, model.size))


def _assembled(vectors: Vectors, namespaces: list[str]) -> VSPBFR:
    """The assembled model around filled networks: a second set of weights would cost 1.7 GB."""
    encoder = networks.round_less(networks.network(vectors, "encoder", namespaces[0]))
    diffuser = networks.code_diffuser(vectors, namespaces[1], encoder.config.num_tokens)
    prior = networks.network(vectors, "prior", namespaces[2])
    restoration = networks.network(vectors, "restoration", namespaces[3])
    config = VSPBFRConfig(
        encoder=encoder.config,
        diffuser=diffuser.config,
        prior=prior.config,
        restoration=restoration.config,
    )
    model = hollow(lambda: VSPBFR(config))
    model.encoder, model.diffuser = encoder, diffuser
    model.prior, model.restoration = prior, restoration
    return model.eval()
