"""Building blocks of networks. Plain modules and functions, no registry.

Letters in shapes: `B` batch, `C` channels, `T H W` frames, height and width of the grid at hand, `N` tokens,
`D` model width, `L` text tokens.
"""
