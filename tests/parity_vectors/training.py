"""Parts that training needs: discriminator, judges, losses, augmentation."""

from __future__ import annotations

import re

import torch
from parity_vectors import networks
from parity_vectors.vectors import Vectors
from torch import Tensor

from vsp_model import augment, published
from vsp_model import losses as vsp_losses
from vsp_model.discriminator import Discriminator

DISCRIMINATOR = "training.discriminator"
R1_WEIGHT = 10 / 2 * 16  # gamma / 2, times the interval of the lazy step; told in words only


def discriminator(vectors: Vectors) -> None:
    """The full network stage by stage, then a small one with batches and R1."""
    namespace = vectors.meta["namespace"]
    model = networks.network(vectors, DISCRIMINATOR, namespace)
    image = vectors.source("image")
    with networks.checked_stages(vectors, model, networks.discriminator_stages(model)):
        vectors.check(f"logits_b{len(image)}", model(image))
    del model
    small = networks.network(vectors, DISCRIMINATOR, namespace, vectors.meta["small_spec"])
    images = vectors.source("small")
    for batch in _batches(vectors, "small_logits"):
        vectors.check(f"small_logits_b{batch}", small(images[:batch]))
    with torch.enable_grad():
        _check_r1(vectors, small, images)


def _batches(vectors: Vectors, name: str) -> list[int]:
    matches = (re.fullmatch(rf"(?:digest:)?{name}_b(\d+)", entry) for entry in vectors.pending)
    return sorted({int(match[1]) for match in matches if match})


def _check_r1(vectors: Vectors, model: Discriminator, images: Tensor) -> None:
    """The note says over how many of the images the penalty is taken."""
    count = re.search(r"small_r1 = mean over the first (\d+) images", vectors.meta["note"])
    real = images[: int(count[1])].clone().requires_grad_() if count else images.requires_grad_()
    logits = model(real)
    (real_grad,) = torch.autograd.grad(logits.sum(), real, retain_graph=True)
    vectors.check("small_real_grad", real_grad)
    penalty = vsp_losses.r1_penalty(logits, real)
    vectors.check("small_r1", penalty)
    parameters = dict(model.named_parameters())
    for rule in published.discriminator_layout(model.config):
        if not isinstance(rule, published.Rule):
            continue
        name = "small_r1_param_grad_" + rule.published[0].replace(".", "_")
        if name in vectors.pending:
            (gradient,) = torch.autograd.grad(
                R1_WEIGHT * penalty, parameters[rule.ours], retain_graph=True
            )
            vectors.check(name, gradient)


def arcface(vectors: Vectors) -> None:
    """Embeddings and the identity loss between two batches."""
    model = networks.network(vectors, "identity", vectors.meta["namespace"])
    a, b = model(vectors.source("a")), model(vectors.source("b"))
    vectors.check("embed_a", a)
    vectors.check("embed_b", b)
    vectors.check("id_loss", vsp_losses.identity_loss(a, b))


def lpips(vectors: Vectors) -> None:
    """Distance per image and its term per layer."""
    model = vsp_losses.LPIPS(vsp_losses.LPIPSConfig())
    model.load(vectors.weights(vectors.meta["namespace"]))
    a, b = vectors.source("a"), vectors.source("b")
    vectors.check("per_layer", model.per_layer(a, b))
    vectors.check("lpips", model(a, b))


def losses(vectors: Vectors) -> None:
    """Adversarial losses of given logits, distance of codes."""
    real, fake = vectors.given("real"), vectors.given("fake")
    vectors.check("d_logistic", vsp_losses.discriminator_loss(real, fake))
    vectors.check("g_nonsaturating", vsp_losses.generator_loss(fake))
    codes = vsp_losses.code_l1(vectors.source("pred"), vectors.source("target"))
    vectors.check("latent_l1", codes)


def ada(vectors: Vectors) -> None:
    """Augmentation by given matrices."""
    x, affine, color = (vectors.given(n) for n in ("x", "inverse_affine", "color"))
    eye3, eye4 = (torch.eye(n).expand(len(x), n, n) for n in (3, 4))
    vectors.check("sym6", torch.tensor(augment.SYM6, dtype=torch.float64))
    vectors.check("out", augment.apply(x, affine, color))
    vectors.check("out_identity", augment.apply(x, eye3, eye4))
    vectors.check("out_affine_only", augment.apply_affine(x, affine))
