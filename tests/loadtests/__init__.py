"""Tests of the loadtests package without a server; tests/serving meets the real one."""
