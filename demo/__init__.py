"""The whole way from texts to a measured, served classifier: the documented commands, in order, and one table."""
