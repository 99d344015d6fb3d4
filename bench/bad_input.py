"""What a user gave that cannot be used."""


class BadInput(ValueError):
    """Says in one line what was expected, what came, and what to do."""
