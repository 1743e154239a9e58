"""hpcstab: which change stops a training from going NaN, and how sure are we?"""

__version__ = "0.1.0"
