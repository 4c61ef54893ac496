"""The torch.compile backend: one graph through the inner backend, and what happens where kernels fail."""
