"""From a merged checkpoint to a release: the engine, the proof that it equals the checkpoint, the Triton repository."""
