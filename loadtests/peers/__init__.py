"""Our served classifier beside other servers of the same model: the same machine, weights, texts and labels."""
