"""The same circuit built with cirkit (`libcirkit` on PyPI, GPL-3): a rival for speed and a witness for correctness.

cirkit calls the layer "cp-t": multiply the parts, then sum; its quad-tree with four splits over a 16x16 image is
`structures.quadtree(16)`. Nothing in the package imports this module.

Version 0.3.1 cuts every log-likelihood off at -708 (github.com/april-tools/cirkit issue 416), which no circuit over 256
tokens can live with. The cut is lifted here, so that both sides compute the same; its operations are still carried out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.flows import statistics
from pipeline.circuit.queries import log_prob
from pipeline.errors import ConfigError, InputError

Parameters = Literal["softmax", "probabilities", "logs"]
"""What cirkit holds: logits under a softmax (its default), probabilities, or for emissions their logs.

The last is its fastest: no table is transformed at all. It is no longer normalised by construction then.
"""


@dataclass(frozen=True)
class Agreement:
    """How far two implementations are apart, in float32.

    Attributes:
        log_prob: largest difference of log-probabilities, in nats.
        counts: largest difference of expected counts, relative to the largest count of the table.
    """

    log_prob: float
    counts: float


def build(circuit: Circuit, kind: Parameters) -> Any:
    """The same circuit in cirkit, folded and optimised, with the same parameters.

    Raises:
        ConfigError: cirkit is not installed.
        InputError: its number of parameters is another.
    """
    try:
        from cirkit.backend.torch import semiring, utils
        from cirkit.pipeline import PipelineContext
        from cirkit.templates.region_graph import QuadTree
        from cirkit.templates.utils import Parameterization, name_to_input_layer_factory, parameterization_to_factory
    except ImportError as error:
        raise ConfigError(
            f"cirkit cannot be imported ({error}); install the extra with pip install '.[benchmark]' in an environment "
            "of its own, or leave its columns out with --own-only."
        ) from error
    semiring.LOG_CLAMP_MIN = utils.LOG_CLAMP_MIN = -torch.inf
    side = round(circuit.tokens**0.5)
    plain = parameterization_to_factory(Parameterization(activation="none", initialization="normal"))
    softmax = parameterization_to_factory(Parameterization(activation="softmax", initialization="normal"))
    held = {"softmax": {"probs": softmax}, "probabilities": {"probs": plain}, "logs": {"logits": plain}}[kind]
    factories = {f"{name}_factory": factory for name, factory in held.items()}
    weights = softmax if kind == "softmax" else plain
    symbolic = QuadTree((1, side, side), num_patch_splits=4).build_circuit(
        input_factory=name_to_input_layer_factory("categorical", num_categories=circuit.codes, **factories),
        sum_product="cp-t",
        sum_weight_factory=weights,
        nary_sum_weight_factory=weights,
        num_input_units=circuit.states,
        num_sum_units=circuit.states,
        num_classes=1,
        factorize_multivariate=True,
    )
    model = PipelineContext(backend="torch", semiring="lse-sum", fold=True, optimize=True).compile(symbolic)
    if (size := sum(p.numel() for p in model.parameters())) != circuit.size():
        raise InputError(f"the two circuits should have as many parameters, but have {circuit.size()} and {size}.")
    _copy(circuit, model, kind)
    return model


def _held(model: Any) -> list[Tensor]:
    """The one parameter of each folded layer, from the tokens to the root."""
    return [next(iter(layer.parameters())) for layer in model.layers]


def _order(circuit: Circuit, model: Any) -> list[Tensor]:
    """Which token or latent each fold of each of cirkit's layers speaks about, found by scope."""
    number = {circuit.graph.scope(k): k for k in range(len(circuit.graph.latents))}
    tokens = model.layers[0].scope_idx.flatten()
    below, order = torch.eye(circuit.tokens, dtype=torch.bool)[tokens], [tokens]
    for entry in list(model.address_book)[1:-1]:
        below = below[entry.in_fold_idx[0]].any(1)
        order.append(torch.tensor([number[tuple(torch.nonzero(row).flatten().tolist())] for row in below]))
    return order


@torch.no_grad()
def _copy(circuit: Circuit, model: Any, kind: Parameters) -> None:
    for depth, (held, order) in enumerate(zip(_held(model), _order(circuit, model), strict=True)):
        if depth == 0:
            values = circuit.emissions[order].transpose(1, 2)
        else:
            values = circuit.weights[order - 1] if int(order[0]) else circuit.root[None, None]
        as_log = kind == "softmax" or (kind == "logs" and depth == 0)
        held.copy_(values.log() if as_log else values)


def agreement(circuit: Circuit, model: Any, tokens: Tensor) -> Agreement:
    """Compare log-probabilities and expected counts with a model of kind "logs".

    Its gradient by a log-emission is an expected count, and by a sum weight an expected count over the weight.
    """
    model.zero_grad()
    found = model(tokens).flatten()
    found.sum().backward()
    counted, worst = statistics(circuit, tokens), 0.0
    for depth, (held, order) in enumerate(zip(_held(model), _order(circuit, model), strict=True)):
        assert held.grad is not None
        if depth == 0:
            theirs, ours = held.grad.transpose(1, 2), counted.emissions[order]
        else:
            theirs = held.grad * held.detach()
            ours = counted.weights[order - 1] if int(order[0]) else counted.root[None, None]
        worst = max(worst, float((theirs - ours).abs().max() / ours.max()))
    return Agreement(float((found.detach().double() - log_prob(circuit, tokens)).abs().max()), worst)
