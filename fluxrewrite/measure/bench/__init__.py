"""Denoising loops with and without kernels, timed: each variant in a process of its own, with empty compiler caches.

This file imports nothing, because the help of `fluxrewrite bench` reads `DEFAULT_VARIANTS` and must not wait for torch.
"""

__all__ = ["DEFAULT_VARIANTS"]

DEFAULT_VARIANTS = "vanilla,qkv,attention,qkv+attention,norm_rope_attention,auto"
"""What `fluxrewrite bench` runs by default: the table of the published experiments, and the policy "auto"."""
