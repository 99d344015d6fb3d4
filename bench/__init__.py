"""Measurements of ditcache, made from outside: this folder imports it as a user would."""

import os

# These libraries report on import which optional packages they miss; none of them is needed here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
