"""Chat templates: finding, bounding and rendering them."""
