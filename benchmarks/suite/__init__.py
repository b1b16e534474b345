"""The parts of `gpu_suite.py`: each takes a `Run` and measures, the most important rows first."""
