"""Start a tritonserver over a deployed repository, and publish releases into it."""
