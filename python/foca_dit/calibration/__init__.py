"""Calibration: what a few full generations of a model teach its cache.

`record` reads the cached features of a model that runs in full, `grams` keeps their inner products,
`influence` says what an error in them does to the image; `placement`, `fit` and `joint` turn that
into full steps and forecast weights, `tune` into a checked plan. `means`, `inflection`, `eoc` and
`masks` are what GOC, EOC and L2C need; `files` stores them. docs/tune.md explains it.
"""
