"""The colours of figures and pages: Okabe and Ito's palette, safe for every kind of colour vision.

Source: https://jfly.uni-koeln.de/color/
"""

BLUE = "#0072B2"
SKY = "#56B4E9"
GREEN = "#009E73"
ORANGE = "#E69F00"
VERMILLION = "#D55E00"
PURPLE = "#CC79A7"
GREY = "#8C8C8C"
"""Ours: theirs is black."""
