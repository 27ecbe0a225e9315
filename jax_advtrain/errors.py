"""The one error that is the user's to mend."""


class ConfigError(ValueError):
    """Something the user gave cannot be used; its text is one line that says what, where, and what would be right."""
