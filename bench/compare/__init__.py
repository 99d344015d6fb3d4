"""`ditcache compare`: ways to make one diffusion pipeline faster, side by side and combined.

In processing order: `subjects` (a pipeline and what it is asked for) -> `methods` (one file each)
-> `combine` (which go together) -> `study` (one process a method, resumable) -> `worker` (prepare,
warm up, generate, measure) -> `judge` (frames to quality) -> `rows` (the table's document) ->
`recommend`, `figure`, `table`.
"""
