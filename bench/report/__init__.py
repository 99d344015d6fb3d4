"""`ditcache report`: one self-contained page of results, and a blind page for people to vote on.

In processing order: `sources` (documents of a folder) -> `charts` (SVG) -> `sections` -> `page`;
`blind` makes the voting page, `votes` turns what it exports into win rates.
"""
