"""Why a generation starts anew, or a step is not as asked for: what counts are kept by."""

from __future__ import annotations

TURNED_BACK = "the timestep moved against the direction of the loop"
"""A new generation of a bare model is told by this."""
SET_ANEW = "the scheduler was set anew"
"""A new generation of a pipeline is told by this, if it did not end the one before."""
DISCONTINUOUS = "the sample does not continue the one before"
RECONDITIONED = "the prompt, the class or the LoRA changed"
RESHAPED = "the sample's shape, dtype or device changed"
FINISHED = "a finished step was called again"
MORE_CALLS = "a step had more calls than the one before"
FEWER_CALLS = "a step had fewer calls than the one before"
ANOTHER_SAMPLE = "the same timestep came with another sample"
NEVER_BEGUN = "the first step did not return"
LEFT_OUT = "the guidance branch was left out of a step"
OFF_SCALE = "the timestep left the range that noise levels are known for"

WRITES = "the call keeps keys and values for later calls"
"""Often of given images, before the loop. Nothing is wrong with it, so it is counted, not said."""
OTHER_TOKENS = "the blocks run on other tokens than at the last full step"
"""The sample has the same shape, but tokens beside it came or went."""

OUT_OF_ORDER = (TURNED_BACK, FINISHED)
"""What a state of one request refuses and the model's own state takes for a new generation."""

SECOND_STEP = (
    "the second step of a model alone is computed, whatever the schedule says: give "
    "apply_foca_cache the pipeline, whose scheduler tells one generation from the next"
)
UNTIMED = (
    "timesteps like {:.3g} are not from 0 to {:g}, so their noise levels are not known: give "
    "apply_foca_cache the pipeline, whose scheduler tells them, or register_adapter a table"
)
