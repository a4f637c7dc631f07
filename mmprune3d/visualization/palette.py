"""Colours and markers of series in plots."""

COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
"""The palette of Okabe and Ito, which colour-blind readers can tell apart."""
MARKERS = 'osD^vP'
