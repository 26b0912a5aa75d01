"""From a model name to weights on a device: catalog, hub, checkpoints, weight readers, device maps."""
