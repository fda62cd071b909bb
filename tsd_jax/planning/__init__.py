"""Compiled programs, before there is a machine for them."""
