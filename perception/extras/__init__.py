"""Additions that nothing else in the package depends on."""
