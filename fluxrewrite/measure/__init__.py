"""Everything that runs code to get a figure: bench, verify, compilers as oracles, calibration."""
