"""Choosing static schedules of a drafter and fitting their corrections on text: `python -m pdevis.calibrate`."""
