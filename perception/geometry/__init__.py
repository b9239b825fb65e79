"""Plane-geometry figures and problems with exact regions."""
