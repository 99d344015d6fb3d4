"""`python -m bench.gpu --out DIR`: everything that only a CUDA machine can tell, in one command.

In processing order: `command` (what is run, within which time, resumable) -> `worker` (one model in
a process of its own) -> `loop` (a model of real size with random weights, and its denoising loop)
-> `ways` (eager, compiled, cached by ditcache or another library) -> `meter` (seconds, gaps and
memory of a loop) -> `table`.
"""
