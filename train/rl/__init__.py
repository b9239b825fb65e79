"""Reinforcement learning: rewards, policy gradient, answers, curves."""
