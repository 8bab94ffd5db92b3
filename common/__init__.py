"""What every script of the benchmark shares, so that the comparison is fair by construction."""
