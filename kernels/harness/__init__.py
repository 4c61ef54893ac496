"""What profiles and checks the kernels: sample inputs, float64 references, cases of `verify`, cost of a call."""
