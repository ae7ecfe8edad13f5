"""One module a way in which masks are kept: folders of files, COCO and LabelMe JSON, polygons on a map."""
