"""What happens to the graph of one denoising step; start reading at `pipeline.py`."""
