"""How cutters name the tiles of a scene: the scene's name, then row and column, or y and x, in either order."""

from __future__ import annotations

TILE = r"(?:[_-](?:y|r|row)_?\d+[_-](?:x|c|col)_?\d+|[_-](?:x|c|col)_?\d+[_-](?:y|r|row)_?\d+)"
SCENE = rf"(.+?){TILE}?"  # of a whole name: group 1 is its scene, a name without a tile's mark is one of its own
