"""Sampling and measuring: what the command line and the benchmarks share."""
