"""Drawn problems: figures, step-by-step solutions, and the exact regions that the steps look at."""
