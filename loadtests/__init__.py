"""Load tests and served-parity checks against a running classifier."""
