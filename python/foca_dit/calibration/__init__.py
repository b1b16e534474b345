"""Calibration: what a few full generations of a model teach its cache.

`watch` reads the cached features of a model that runs in full, `grams` keeps their inner products,
`fit` and `placement` turn those into forecast weights and full steps. docs/tune.md explains it.
"""
