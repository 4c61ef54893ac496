"""The graph before and after: boundaries, lost fusions, absorptions, executables, predicted step time."""
