"""Tells the calls of a denoising loop apart: which step, and is it still the same generation?

A model is only ever called with a timestep and a sample. `Trajectory` follows one guidance branch
of one generation through those calls. It never guesses in favour of the cache: whatever does not
clearly continue what came before starts anew, at the price of a few full steps.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from foca_dit import reasons
from foca_dit.clock import Clock

# Consecutive samples of one trajectory differ by one solver step, samples of two trajectories by
# independent noise: the relative distance of their fingerprints is then near sqrt(2).
CONTINUITY_LIMIT = 0.75
FINGERPRINT_SIZE = 1024


def fingerprint(sample: torch.Tensor) -> torch.Tensor:
    """A copy of up to 1024 elements of the sample, evenly spread, in float32, on its device."""
    flat = sample.detach().reshape(-1)
    stride = max(1, flat.numel() // FINGERPRINT_SIZE)
    return flat[::stride][:FINGERPRINT_SIZE].to(torch.float32, copy=True)


def turns_back(timesteps: Sequence[float], timestep: float) -> bool:
    """Whether a timestep lies on the other side of the last one than the steps before went."""
    if len(timesteps) < 2:
        return False
    before, last = timesteps[-2:]
    return (timestep - last) * (last - before) < 0


def continues(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether two fingerprints can be neighbours on one denoising trajectory."""
    distance = torch.linalg.vector_norm(after - before)
    return bool(distance <= CONTINUITY_LIMIT * torch.linalg.vector_norm(before))


class Seen:
    """A tensor as it was: not looked at again while it is the same one, and not written to."""

    def __init__(self, value: torch.Tensor) -> None:
        self._reference = weakref.ref(value)
        self._version = _version(value)
        self._signature = _signature(value)
        self._fingerprint = torch.nan_to_num(fingerprint(value))  # padding may hold anything

    def is_still(self, value: torch.Tensor) -> bool:
        """Whether a tensor is this one, or has its values (a host read)."""
        if self._reference() is value and _version(value) == self._version is not None:
            return True
        return _signature(value) == self._signature and torch.equal(
            torch.nan_to_num(fingerprint(value)), self._fingerprint
        )


def _version(value: torch.Tensor) -> int | None:
    """The count of writes to a tensor; inference tensors have none."""
    return None if value.is_inference() else value._version


@dataclass
class Trajectory:
    """The steps that one branch has gone through.

    Attributes:
        clock: maps the model's timestep and the step index to the time variable.
        watch: compare samples (a host read per call) and conditions as well, not only timesteps
            and shapes.
        timesteps: the model's timestep at every step so far.
        tau: the time variable at every step so far (float64).
    """

    clock: Clock
    watch: bool = True
    timesteps: list[float] = field(default_factory=list)
    tau: list[float] = field(default_factory=list)
    _shape: tuple[object, ...] | None = None
    _sample: torch.Tensor | None = None
    # What `break_with` found out for the `advance` after it: the fingerprint of a sample, and
    # whether the conditions are kept.
    _looked_at: tuple[torch.Tensor, torch.Tensor] | None = None
    _kept: bool | None = None
    _conditions: list[Seen] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Index of the step in progress or last finished; -1 before the first."""
        return len(self.timesteps) - 1

    def break_with(
        self, timestep: float, sample: torch.Tensor, conditions: Sequence[torch.Tensor] = ()
    ) -> str | None:
        """Why this call does not continue the trajectory, or None if it does."""
        self._looked_at = self._kept = None
        if not self.timesteps:
            return None
        if self._shape != _signature(sample):
            return reasons.RESHAPED
        if turns_back(self.timesteps, timestep):
            return reasons.TURNED_BACK
        if self.watch:
            self._kept = self.keeps(conditions)
            if not self._kept:
                return reasons.RECONDITIONED
        if self._sample is not None and not continues(self._sample, self._look_at(sample)):
            return reasons.DISCONTINUOUS
        return None

    def saw(self, sample: torch.Tensor) -> bool:
        """Whether this very sample was the last one given to `advance`."""
        if self._sample is None or self._shape != _signature(sample):
            return False
        return torch.equal(fingerprint(sample), self._sample)

    def advance(
        self, timestep: float, sample: torch.Tensor, conditions: Sequence[torch.Tensor] = ()
    ) -> int:
        """Records a call and returns its step index. The same timestep again is the same step."""
        if not self.timesteps or timestep != self.timesteps[-1]:
            self.tau.append(self.clock(timestep, len(self.tau)))  # may raise: it may be the user's
            self.timesteps.append(timestep)
        self._shape = _signature(sample)
        self._sample = self._look_at(sample) if self.watch else None
        kept = self.watch and (self._kept or self.keeps(conditions))
        self._looked_at = self._kept = None
        if self.watch and not kept:
            self._conditions = [Seen(value) for value in conditions]
        return self.step

    def _look_at(self, sample: torch.Tensor) -> torch.Tensor:
        """The fingerprint of a sample, taken once a call: by `break_with`, for `advance`."""
        if self._looked_at is None or self._looked_at[0] is not sample:
            self._looked_at = sample, fingerprint(sample)
        return self._looked_at[1]

    def keeps(self, conditions: Sequence[torch.Tensor]) -> bool:
        """Whether these conditions are those of the last call."""
        known = self._conditions
        return len(known) == len(conditions) and all(map(Seen.is_still, known, conditions))


def _signature(sample: torch.Tensor) -> tuple[object, ...]:
    return (tuple(sample.shape), sample.dtype, sample.device)
