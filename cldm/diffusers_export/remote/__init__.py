"""Files that travel in an exported folder, each in its component's: they import torch and diffusers alone.

Networks are diffusers' own, under their weights' own names; here is only what diffusers lacks. A test holds what they
compute against this project's own networks.
"""
