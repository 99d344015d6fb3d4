"""`ditcache evaluate`: many samples of a model, with and without a plan, as sets and in pairs.

In processing order: `prompts` -> `settings` -> `blocks` (generate and score a block of samples at
a time, resumable, on any number of processes) -> `scorers` -> `moments` (statistics in index
order) -> `results` -> `command`.
"""
