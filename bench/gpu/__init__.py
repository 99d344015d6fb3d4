"""`python -m bench.gpu --out DIR`: everything that only a CUDA machine can tell, in one command.

In processing order: `command` (what is run, within which time, resumable) -> `worker` (one model in
a process of its own) -> `loop` (a model of real size with random weights, and its denoising loop)
-> `choice` (which `ways`: eager, compiled, cached by ditcache or by `peers`) -> `measured` ->
`meter` (seconds, gaps, waits and memory of a loop) -> `table`, `criteria` (what it has to show).
"""
