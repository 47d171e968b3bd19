"""The peers' server programs. Each runs in its peer's own environment, started by `loadtests.peers`; none is imported here."""
