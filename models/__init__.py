"""Models to work on: small trained ones, and real architectures at real size."""
