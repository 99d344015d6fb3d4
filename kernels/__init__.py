"""The kernels behind the cache ops, each beside the reference that defines it."""
