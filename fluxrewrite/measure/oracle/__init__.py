"""What compilers really fuse, read from the compilers themselves: the ground truth for this project's model of fusion."""
