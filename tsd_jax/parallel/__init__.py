"""One program on many devices and machines."""
