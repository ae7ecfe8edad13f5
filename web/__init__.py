"""The page to paint on: a mask becomes images in a browser, by the synthesis that the command line has."""
