"""A model as a folder that diffusers loads without this project, and back: ``docs/diffusers.md``."""
