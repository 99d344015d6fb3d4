"""What happens at each call of a compiled model; start reading at `backend.py`."""
