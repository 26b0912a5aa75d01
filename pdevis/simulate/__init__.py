"""Simulation of drafting on other devices and under other rules, from the traces of real runs."""
