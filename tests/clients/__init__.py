"""Tests of the clients package without a server; tests/serving meets the real one."""
