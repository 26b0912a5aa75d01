"""Forwards in static shapes, compiled by torch.compile and captured as CUDA graphs."""
