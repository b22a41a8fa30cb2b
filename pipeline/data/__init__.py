"""Where images and masks come from, and the one form in which they are stored: sources -> shards -> arrays.

Nothing is imported here: whoever reads stored images depends on `shards` and `images` alone, not on the painters.
"""
