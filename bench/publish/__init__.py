"""Tables of the committed results, as they stand in the README and in docs/results.md."""
