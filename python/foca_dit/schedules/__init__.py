"""Schedules: at which steps a feature is computed in full.

`fixed` holds those known beforehand (an interval, a list, a mask), `adaptive` the one that decides
while it runs, from the `defects` of the features and the `sampler`'s weight of an error.
"""

from foca_dit.schedules.adaptive import Adaptive
from foca_dit.schedules.base import NEVER, Decision, Schedule, Situation
from foca_dit.schedules.fixed import FullSteps, Interval, StepMask
from foca_dit.schedules.sampler import Outlook

__all__ = [
    "NEVER",
    "Adaptive",
    "Decision",
    "FullSteps",
    "Interval",
    "Outlook",
    "Schedule",
    "Situation",
    "StepMask",
]
