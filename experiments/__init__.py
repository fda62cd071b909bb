"""Experiments: one short file each, its docstring a lab note."""
