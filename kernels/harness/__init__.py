"""Profiling and checking of kernels: sample inputs, float64 references, the cases of `verify`, the cost of a call."""
