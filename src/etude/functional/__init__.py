"""Tricks as pure functions: the random draw is separate from the arithmetic."""
