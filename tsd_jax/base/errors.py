"""Errors that are the user's to mend; commands show them on one line."""


class UserError(Exception):
  """Bad input: commands show the message on one line, with no traceback."""

  exit_code = 2


class ConfigError(UserError):
  """A config that does not exist, or is set to what it cannot be."""
