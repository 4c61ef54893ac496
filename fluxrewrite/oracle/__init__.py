"""Compilers that say themselves what they fuse."""
