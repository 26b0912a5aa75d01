"""From model names to models that are ready to decode: catalog, hub, files, weights, devices."""
