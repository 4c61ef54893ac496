"""Compare a model with and without its kernels: every site by itself, and a denoising loop from end to end."""

from .records import Verification
from .run import Progress, VerifyOptions, judge, verify

__all__ = ["Progress", "Verification", "VerifyOptions", "judge", "verify"]
