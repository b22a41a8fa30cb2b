"""Training a circuit: Lightning turns the pages, expectation-maximisation sets the parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.em import Prior, em_step, maximise
from pipeline.circuit.flows import Statistics, count
from pipeline.circuit.queries import bits_per_token, conditional_bits
from pipeline.training.batches import TokenBatches
from pipeline.training.fit import SeededModule
from pipeline.training.settings import EMParams, TrainerParams

PARAMETERS = ("root", "weights", "emissions")


class PassSampler(Sampler[NDArray[np.int64]]):
    """Row numbers of whole passes over the data, in an order drawn from (seed, epoch), `batch` at a time.

    What is left over at the end of a pass joins its last batch.
    """

    def __init__(self, rows: int, *, batch: int, seed: int) -> None:
        self.rows, self.batch, self.seed, self.epoch = rows, min(batch, rows), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this at the start of each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows // self.batch

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.rows)
        yield from np.array_split(order, len(self))


def passes(tokens: Tensor, em: EMParams, seed: int) -> DataLoader[Tensor]:
    """Batches [B, N] of whole passes over tokens [M, N]."""
    sampler = PassSampler(len(tokens), batch=em.batch, seed=seed)
    return DataLoader(TokenBatches(tokens.numpy()), sampler=sampler, batch_size=None)


def trainer_params(em: EMParams, batches: int) -> TrainerParams:
    """What `fit` needs to know: a checkpoint and a row of the curve after each pass of so many batches."""
    return TrainerParams(
        steps=em.epochs * batches,
        checkpoint_every=batches,
        batch=em.batch,
        learning_rate=em.first_step,
        ema=0.0,
        log_every=batches,
    )


class CircuitTraining(SeededModule):
    """EM on expected counts, watched on validation tokens; what is kept in the end is the best pass's circuit.

    Everything that a resumed training needs is in buffers, so in the checkpoint.
    """

    counted_root: Tensor
    counted_weights: Tensor
    counted_emissions: Tensor
    val: Tensor
    best_val: Tensor
    stale: Tensor

    def __init__(
        self,
        circuit: Circuit,
        counted: Statistics,
        prior: Prior,
        val: Tensor,
        *,
        known: Mapping[str, Tensor],
        images: int,
        em: EMParams,
        params: TrainerParams,
        seed: int,
    ) -> None:
        """Train `circuit`, whose parameters were made from `counted`, the counts of `images` images.

        `val` [M, N] are validation tokens, `known` names patterns of known tokens [M, N] for which the bits of the
        hidden ones are reported.
        """
        super().__init__(params, seed)
        self.automatic_optimization = False
        self.circuit, self.prior, self.known, self.images, self.em = circuit, prior, dict(known), images, em
        for name in PARAMETERS:
            self.register_buffer(f"counted_{name}", getattr(counted, name).to(circuit.root))
            self.register_buffer(f"best_{name}", getattr(circuit, name).clone())
        self.register_buffer("val", val, persistent=False)
        self.register_buffer("best_val", torch.tensor(float("inf"), dtype=torch.float64))
        self.register_buffer("stale", torch.tensor(0))

    def on_fit_start(self) -> None:
        """Bring the prior to where the circuit is."""
        self.prior = self.prior.to(self.circuit.root.device)
        self.known = {name: pattern.to(self.val.device) for name, pattern in self.known.items()}
        if not bool(torch.isfinite(self.best_val)):
            self.best_val.fill_(bits_per_token(self.circuit, self.val))

    def on_train_start(self) -> None:
        """Do not go on where training had stopped."""
        self.trainer.should_stop = self.stopped

    @property
    def stopped(self) -> bool:
        """Whether `patience` passes went by without a better validation likelihood."""
        return int(self.stale) >= self.em.patience

    def training_step(self, tokens: Tensor, batch_idx: int) -> None:
        """One batch; after the last of a pass, look at the validation tokens."""
        counted = Statistics(self.counted_root, self.counted_weights, self.counted_emissions)
        last = batch_idx + 1 == self.trainer_params.checkpoint_every
        if self.em.kind == "full":
            if batch_idx == 0:
                counted.decay(0.0)
            count(self.circuit, tokens, counted)
            log_probability = counted.log_prob / len(tokens)
            if last:
                maximise(self.circuit, counted, self.prior)
        else:
            done = (self.step_number() - 1) / max(self.trainer_params.steps - 1, 1)
            log_probability = em_step(
                self.circuit,
                counted,
                tokens,
                images=self.images,
                step=self.em.step(done),
                memory=self.em.memory,
                prior=self.prior,
            )
        for name in PARAMETERS:
            getattr(self, f"counted_{name}").copy_(getattr(counted, name))
        nats = log_probability + float(self.circuit.read(tokens)[2].mean())
        self.metrics = {"train/bits_per_token": _scalar(-nats / (tokens.shape[1] * math.log(2.0)))}
        if last:
            self.metrics |= {name: _scalar(value) for name, value in self.validate().items()}

    def validate(self) -> dict[str, float]:
        """Validation likelihood, conditional bits and use of states; remember the circuit if it is the best so far."""
        val = self.val
        found = {"val/bits_per_token": bits_per_token(self.circuit, val)}
        for name, pattern in self.known.items():
            found[f"val/conditional_bits/{name}"] = mean_conditional_bits(self.circuit, val, pattern)
        found["flows/states_used"] = states_used(self.counted_weights)
        if found["val/bits_per_token"] < float(self.best_val):
            self.best_val.fill_(found["val/bits_per_token"])
            self.stale.zero_()
            for name in PARAMETERS:
                getattr(self, f"best_{name}").copy_(getattr(self.circuit, name))
        else:
            self.stale += 1
            self.trainer.should_stop = self.stopped
        return found

    def best(self) -> Circuit:
        """The circuit with the parameters that were best on the validation tokens."""
        for name in PARAMETERS:
            getattr(self.circuit, name).copy_(getattr(self, f"best_{name}"))
        return self.circuit

    def configure_optimizers(self) -> Any:
        """Nothing is descended."""
        return


def mean_conditional_bits(circuit: Circuit, tokens: Tensor, known: Tensor) -> float:
    """Mean bits per hidden token given the known ones, tokens and patterns [M, N]; images without any are left out."""
    some = ~known.all(1)
    return float(conditional_bits(circuit, tokens[some], known[some]).mean())


def states_used(counted: Tensor) -> float:
    """Perplexity of the states' use, averaged over latents, from counts of transitions [R - 1, H, H]."""
    uses = counted.double().sum(1)
    shares = uses / uses.sum(1, keepdim=True).clamp_min(1e-30)
    return float(torch.special.entr(shares).sum(1).exp().mean())


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
