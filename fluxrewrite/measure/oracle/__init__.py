"""Compilers asked what they really fuse: the truth that our own model of fusion is compared with."""
