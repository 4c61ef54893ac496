"""Everything that runs something to get a figure: bench, verify, compilers as oracles, calibration."""
